/**
 * How handles print: `console.log`, `util.inspect` and `String` give one line, `toJSON` the whole structure. Failed assertions print
 * those lines, and neither the runtime behind the handles nor the bytes of buffers.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaBlas,
  CudaBranch,
  CudaDependency,
  CudaEvent,
  CudaKernel,
  CudaMemory,
  CudaMemoryPool,
  CudaModule,
  CudaParameter,
  CudaProgram,
  CudaStream,
  CudaTaskGraph,
  SimulatedRuntime
} from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as nodeAssert from "node:assert"
import { format, inspect } from "node:util"
import { expect } from "vitest"
import { openStub, stubLayer } from "./support/stubDriver.ts"

const kernels = {
  scale: SimulatedRuntime.kernel({ parameters: [CudaParameter.u32, CudaParameter.f32], cost: 0, run: () => {} })
}

const addressless = (text: string): string => text.replace(/0x[0-9a-f]+/g, "0x…")

/** Asserts that a handle is one line however it is printed; addresses are left out. */
const printsAs = (handle: { readonly toJSON: () => unknown }, line: string) => {
  assert.strictEqual(addressless(String(handle)), line)
  assert.strictEqual(inspect(handle), String(handle))
  assert.strictEqual(format("%O", { handle }), `{ handle: ${handle} }`)
  assert.strictEqual(typeof handle.toJSON(), "object")
  assert.strictEqual(JSON.stringify(handle), JSON.stringify(handle.toJSON()))
}

describe("a handle prints as one line", () => {
  const inRuntime = Effect.provide(SimulatedRuntime.layer({ devices: 2, kernels }))

  it.live("streams: their id, device and kind, and their state once they are released", () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const stream = yield* Scope.provide(CudaStream.make({ nonBlocking: false, device: 1 }), scope)
      printsAs(stream, `CudaStream(id ${stream.id}, device 1, blocking)`)
      yield* Scope.close(scope, Exit.void)
      printsAs(stream, `CudaStream(id ${stream.id}, device 1, blocking, released)`)
      const pooled = yield* CudaStream.fromPool()
      printsAs(pooled, `CudaStream(id ${pooled.id}, device 0, non-blocking)`)
      printsAs(yield* CudaStream.defaultStream(), "CudaStream(id 0, device 0, blocking, default)")
    }).pipe(inRuntime))

  it.live("events and dependencies", () =>
    Effect.gen(function*() {
      const event = yield* CudaEvent.make()
      printsAs(event, "CudaEvent(0x…, device 0)")
      printsAs(yield* CudaEvent.make({ timing: true, blocking: true }), "CudaEvent(0x…, device 0, timing, blocking)")
      printsAs(yield* CudaEvent.make({ interprocess: true }), "CudaEvent(0x…, device 0, interprocess)")
      printsAs(yield* CudaDependency.make([event, yield* CudaStream.make()]), "CudaDependency(2 events)")
    }).pipe(Effect.scoped, inRuntime))

  it.live("memory and pools", () =>
    Effect.gen(function*() {
      printsAs(yield* CudaMemory.allocate(64), "DeviceBuffer(64 bytes, 0x…, device 0)")
      printsAs(yield* CudaMemory.allocate(64, { ordered: true }), "DeviceBuffer(64 bytes, 0x…, device 0, ordered)")
      printsAs(yield* CudaMemory.allocateManaged(32), "ManagedBuffer(32 bytes, 0x…, device 0)")
      printsAs(yield* CudaMemory.allocateHost(16), "HostBuffer(16 bytes, 0x…)")
      printsAs(yield* CudaMemoryPool.make({ device: 1 }), "MemoryPool(0x…, device 1)")
      printsAs(yield* CudaMemoryPool.ofDevice(), "MemoryPool(0x…, device 0, of the runtime)")
    }).pipe(Effect.scoped, inRuntime))

  it.live("programs, modules and kernels", () =>
    Effect.gen(function*() {
      const program = yield* CudaProgram.compile("__global__ void scale(unsigned, float);", {
        name: "scale.cu",
        nameExpressions: ["scale"]
      })
      printsAs(program, `CudaProgram(scale.cu, simulated${program.architecture ? `, ${program.architecture}` : ""})`)
      const module = yield* CudaModule.load(program)
      printsAs(module, "CudaModule(scale.cu)")
      const kernel = yield* CudaKernel.get(module, "scale", [CudaParameter.u32, CudaParameter.f32])
      printsAs(kernel, "CudaKernel(scale, u32, f32)")
    }).pipe(Effect.scoped, inRuntime))

  it.live("plans of products, and their state once they are released", () =>
    Effect.gen(function*() {
      const matrix = { rows: 8, columns: 4, type: "bf16" } as const
      const scope = yield* Scope.make()
      const plan = yield* CudaBlas.plan({
        a: matrix,
        b: { ...matrix, rows: 4, columns: 16 },
        d: { rows: 8, columns: 16, type: "f32" },
        device: 1
      }).pipe(Scope.provide(scope))
      printsAs(plan, "MatmulPlan(8 × 16 × 4, bf16 · bf16 → f32, device 1)")
      assert.deepInclude(plan.toJSON(), { _id: "MatmulPlan", rows: 8, columns: 16, depth: 4, state: "live" })
      assert.isTrue(CudaBlas.isMatmulPlan(plan))
      assert.isFalse(CudaBlas.isMatmulPlan({ plan }))
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual(String(plan), "MatmulPlan(8 × 16 × 4, bf16 · bf16 → f32, device 1, released)")
    }).pipe(Effect.provide(CudaBlas.layer()), inRuntime))

  it.live("branches and task graphs", () =>
    Effect.gen(function*() {
      const branch = yield* CudaBranch.fork(Effect.void)
      const { id } = branch.stream
      printsAs(branch, `CudaBranch(stream ${id}, device 0)`)
      yield* CudaBranch.join(branch)
      printsAs(branch, `CudaBranch(stream ${id}, device 0, joined)`)
      printsAs(CudaTaskGraph.empty.pipe(CudaTaskGraph.add("one", Effect.void)), "CudaTaskGraph(1 task)")
    }).pipe(Effect.scoped, inRuntime))
})

/** The message of an assertion that fails. */
const messageOf = (assertion: () => void): string => {
  try {
    assertion()
  } catch (error) {
    if (error instanceof Error) return error.message
  }
  return assert.fail("the assertion holds")
}

const stub = openStub()

describe.each([
  { name: "simulated", runtime: SimulatedRuntime.layer() },
  { name: "native", runtime: stubLayer(stub) }
])("a failed assertion, $name", ({ runtime }) => {
  const bytes = 64 << 20
  const different = Effect.gen(function*() {
    return [
      [yield* CudaStream.make({ name: "upload" }), yield* CudaStream.make({ name: "download" })],
      [yield* CudaEvent.make({ timing: true }), yield* CudaEvent.make()],
      [yield* CudaMemory.allocate(64, { ordered: true }), yield* CudaMemory.allocate(32)],
      [yield* CudaMemory.allocateHost(bytes), yield* CudaMemory.allocateHost(bytes)],
      [yield* CudaMemory.pinnedArray("f32", bytes / 4), yield* CudaMemory.pinnedArray("f32", bytes / 4)],
      [yield* CudaMemory.pin(new Uint8Array(bytes)), yield* CudaMemory.pin(new Uint8Array(bytes))],
      [yield* CudaMemory.allocateManaged(bytes), yield* CudaMemory.allocateManaged(bytes)],
      [yield* CudaMemoryPool.make(), yield* CudaMemoryPool.ofDevice()],
      [yield* CudaStream.make(), yield* CudaEvent.make()]
    ] as const
  })

  it.live("of vitest prints both lines", () =>
    Effect.gen(function*() {
      for (const [one, other] of yield* different) {
        const equal = messageOf(() => assert.deepStrictEqual<unknown>(one, other))
        assert.strictEqual(equal, `expected ${one} to deeply equal ${other}`)
        assert.strictEqual(
          messageOf(() => assert.strictEqual<unknown>(one, other)),
          `expected ${one} to equal ${other}`
        )
        assert.strictEqual(
          messageOf(() => expect(one).toStrictEqual(other)),
          `expected ${one} to strictly equal ${other}`
        )
      }
    }).pipe(Effect.scoped, Effect.provide(runtime)))

  // It prints what it finds behind the handles; Node.js 22 and later do not shorten that.
  it.live("of node:assert, which ignores how values print themselves, prints no bytes of buffers", () =>
    Effect.gen(function*() {
      for (const [one, other] of yield* different) {
        const message = messageOf(() => nodeAssert.deepStrictEqual(one, other))
        assert.include(message, "Expected values to be strictly deep-equal")
        assert.isBelow(message.length, 100_000)
      }
    }).pipe(Effect.scoped, Effect.provide(runtime)))
})
