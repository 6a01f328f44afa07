/**
 * Fibers that yield after checking something and before acting on it: waits, while another fiber releases what they wait for, and
 * code that is loaded, while another fiber makes the device busy.
 */
import { assert, describe, it } from "@effect/vitest"
import * as CudaDevice from "effect-cuda/CudaDevice"
import type { CudaError } from "effect-cuda/CudaError"
import * as CudaEvent from "effect-cuda/CudaEvent"
import * as CudaKernel from "effect-cuda/CudaKernel"
import * as CudaModule from "effect-cuda/CudaModule"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as CudaStream from "effect-cuda/CudaStream"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { MaxOpsBeforeYield } from "effect/References"
import * as Scope from "effect/Scope"
import { program, signatures } from "../support/kernels.ts"
import { assertReleased, onStub, openStub, pause } from "../support/stubDriver.ts"
import { openRuntime } from "../support/waits.ts"
import { withEveryYield } from "../support/yields.ts"

const stub = openStub()

/** Starts a wait on a busy stream in a fiber that yields, and releases what it waits for immediately. The wait must end. */
const raced = (
  operations: number,
  prepare: (stream: CudaStream.CudaStream) => Effect.Effect<
    Effect.Effect<void, CudaError, CudaRuntime>,
    CudaError,
    CudaRuntime | Scope.Scope
  >
) =>
  Effect.gen(function*() {
    const scope = yield* Scope.make()
    const stream = yield* Scope.provide(CudaStream.make(), scope)
    stub.work(stream)
    const wait = yield* Scope.provide(prepare(stream), scope)
    const fiber = yield* Effect.provideService(wait, MaxOpsBeforeYield, operations).pipe(
      Effect.forkChild({ startImmediately: true })
    )
    stub.finish(stream)
    yield* Scope.close(scope, Exit.void)
    yield* endsWell(fiber)
  })

const endsWell = (fiber: Fiber.Fiber<unknown, CudaError>) =>
  Effect.match(Fiber.join(fiber), {
    onSuccess: () => {},
    onFailure: ({ message, reason }) => assert.strictEqual(reason._tag, "ResourceReleased", message)
  })

describe("a wait whose fiber yields while the resource is released", () => {
  const check = (prepare: Parameters<typeof raced>[1]) =>
    onStub(
      stub,
      withEveryYield((operations) => Effect.provideService(raced(operations, prepare), MaxOpsBeforeYield, 2048))
    )

  it.live("for an event", () => check((stream) => Effect.map(CudaStream.recordEvent(stream), CudaEvent.synchronize)))

  it.live("for a stream", () => check((stream) => Effect.succeed(CudaStream.synchronize(stream))))

  it.live("for a device", () => check(() => Effect.succeed(CudaDevice.synchronize())))

  it.live("for memory, while the runtime is released", () =>
    withEveryYield((operations) =>
      Effect.gen(function*() {
        stub.reset()
        stub.pending = "memory"
        const { close, runtime } = yield* openRuntime(stub)
        // Opens the device.
        yield* runtime.devicePriorityRange(0)
        const fiber = yield* Effect.provideService(runtime.memoryAllocate(0, 64), MaxOpsBeforeYield, operations).pipe(
          Effect.forkChild({ startImmediately: true })
        )
        stub.letGo()
        yield* close
        yield* endsWell(fiber)
        assertReleased(stub)
      }).pipe(Effect.provideService(MaxOpsBeforeYield, 2048))
    ))
})

describe("loading code for an idle device, whose fiber yields while the device becomes busy", () => {
  const mostTurns = 16

  it.live("never calls the driver while the device is busy", () =>
    onStub(
      stub,
      Effect.gen(function*() {
        const stream = yield* CudaStream.make()
        const load = (operations: number, turns: number) =>
          Effect.gen(function*() {
            const module = yield* CudaModule.load(yield* program)
            const kernel = Effect.suspend(() => CudaKernel.get(module, "put", signatures.put))
            const fiber = yield* Effect.forkChild(Effect.provideService(kernel, MaxOpsBeforeYield, operations))
            for (let turn = 0; turn < turns; turn++) yield* Effect.yieldNow
            stub.work(stream)
            yield* pause(1)
            stub.finish(stream)
            yield* Fiber.join(fiber)
            yield* CudaStream.synchronize(stream)
            assert.strictEqual(stub.blocked, 0, `after ${turns} turns`)
          }).pipe(Effect.scoped)
        yield* withEveryYield((operations) =>
          Effect.forEach(
            Array.from({ length: mostTurns }, (_, turns) => turns),
            (turns) => load(operations, turns),
            { discard: true }
          ).pipe(Effect.provideService(MaxOpsBeforeYield, 2048))
        )
      })
    ))
})
