/**
 * The layer that waits after every operation: which operation is behind a fault, on both runtimes.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaGraph from "effect-cuda/CudaGraph"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaMemory from "effect-cuda/CudaMemory"
import * as CudaModule from "effect-cuda/CudaModule"
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as DebugRuntime from "effect-cuda/DebugRuntime"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { statuses } from "../src/cuda/status.ts"
import { program as compiled, signatures, simulatedKernels } from "./support/kernels.ts"
import { logged, onStub, openStub } from "./support/stubDriver.ts"

const simulated = SimulatedRuntime.layer({ kernels: simulatedKernels, devices: [{ memory: 2 ** 28 }] })
const debugged = (options?: DebugRuntime.DebugOptions) => DebugRuntime.layer(options).pipe(Layer.provide(simulated))

/** Three launches, of which the second writes outside its buffer. */
const faulty = Effect.gen(function*() {
  const module = yield* CudaModule.load(yield* compiled)
  const add = yield* CudaKernel.get(module, "add", signatures.add)
  const stream = yield* CudaStream.make({ name: "sums" })
  const buffer = yield* CudaMemory.allocate(64)
  const launch = (count: number) => CudaKernel.launch(add, { grid: 1, block: 64 }, [buffer, buffer, count], stream)
  yield* launch(16)
  const error = yield* Effect.flip(launch(1 << 20).pipe(Effect.withSpan("wrong launch")))
  const later = yield* Effect.flip(launch(16))
  return { error, later, stream }
}).pipe(Effect.scoped)

describe("a fault", () => {
  it.live("is the failure of the operation that caused it, with its line, and logged", () =>
    Effect.gen(function*() {
      const { lines, result: { error, later, stream } } = yield* logged(Effect.provide(faulty, debugged()))
      assert.strictEqual(error.operation, "CudaKernel.launch")
      assert.strictEqual(error.reason._tag, "IllegalAddress")
      assert.strictEqual(error.subject, `add, stream ${stream.id} "sums" of device 0`)
      assert.strictEqual(error.deviceIndex, 0)
      assert.match(error.message, /Enqueued at .*debug\.test\.ts:\d+:\d+.*, in wrong launch/)
      assert.isDefined(later.origin)
      const errors = lines.filter((line) => line.startsWith("Error"))
      assert.strictEqual(errors.length, 1, lines.join("\n"))
      assert.include(errors[0]!, "CudaKernel.launch (add, stream")
    }))

  it.live("has no line, and is not logged, if that is not wanted", () =>
    Effect.gen(function*() {
      const { lines, result: { error } } = yield* logged(
        Effect.provide(faulty, debugged({ stacks: false, log: false }))
      )
      assert.notInclude(error.message, "debug.test.ts:2")
      assert.strictEqual(error.operation, "CudaKernel.launch")
      assert.deepStrictEqual(lines.filter((line) => line.startsWith("Error")), [])
    }))

  it.live("without the layer, is the failure of a later wait", () =>
    Effect.gen(function*() {
      const asynchronous = Effect.gen(function*() {
        const module = yield* CudaModule.load(yield* compiled)
        const add = yield* CudaKernel.get(module, "add", signatures.add)
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocate(64)
        yield* CudaKernel.launch(add, { grid: 1, block: 64 }, [buffer, buffer, 1 << 20], stream)
        return yield* Effect.flip(CudaStream.synchronize(stream))
      }).pipe(Effect.scoped, Effect.provide(simulated))
      assert.strictEqual((yield* asynchronous).operation, "CudaStream.synchronize")
    }))
})

describe("operations", () => {
  it.live("are done when they return, but recordings are not waited for", () =>
    Effect.gen(function*() {
      const stream = yield* CudaStream.make()
      const [device, host] = [yield* CudaMemory.allocate(4096), yield* CudaMemory.allocateHost(4096)]
      yield* CudaMemory.fill(device, 7, stream)
      yield* CudaMemory.copy(host, device, stream)
      assert.strictEqual(host.bytes[4095], 7)
      const graph = yield* CudaGraph.record(CudaMemory.fill(device, 9))
      const exec = yield* CudaGraph.instantiate(graph)
      yield* CudaGraph.launch(exec, { stream })
      assert.isTrue(yield* CudaStream.query(stream))
    }).pipe(Effect.scoped, Effect.provide(debugged())))

  const stub = openStub()

  it.live("wait for the driver, and take its status", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const inner = yield* CudaRuntime
        const failed = Effect.gen(function*() {
          const stream = yield* CudaStream.make()
          const buffer = yield* CudaMemory.allocate(64)
          stub.clear()
          yield* CudaMemory.fill(buffer, 1, stream)
          assert.strictEqual(stub.calls("cuStreamQuery").length, 1)
          stub.fail("cuStreamQuery", statuses.InvalidValue.code)
          return yield* Effect.flip(CudaMemory.fill(buffer, 1, stream))
        }).pipe(Effect.scoped, Effect.provideService(CudaRuntime, DebugRuntime.make(inner, { log: false })))
        const error = yield* failed
        assert.deepStrictEqual([error.operation, error.reason._tag], ["CudaMemory.fill", "InvalidValue"])
      })
    ))
})
