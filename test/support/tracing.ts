/**
 * Tracing on the stub driver: an opened device, and the calls of a single effect.
 */
import { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { DriverFunctionName } from "../../src/cuda/functions.ts"
import { onStub } from "./stubDriver.ts"
import type { StubDriver, StubOptions } from "./stubDriver.ts"

/** Resources that a device's first use leaves in the driver. */
export interface Opened {
  readonly context: number
  readonly pool: number
  readonly allocations: number
  readonly releases: number
}

/** A call as its name and arguments. */
export type Line = ReadonlyArray<number | string>

/** A call between the push and the pop of a context. */
export const within = (context: number, ...calls: ReadonlyArray<Line>): ReadonlyArray<Line> => [
  ["cuCtxPushCurrent_v2", context],
  ...calls,
  ["cuCtxPopCurrent_v2", context]
]

export const tracing = (stub: StubDriver) => {
  const resultOf = (name: DriverFunctionName, index = 0): number => Number(stub.calls(name)[index]!.args[0])

  /** Opens a device and clears the calls that it took. */
  const openDevice = (ordinal = 0): Effect.Effect<Opened, never, CudaRuntime> =>
    Effect.gen(function*() {
      const runtime = yield* CudaRuntime
      stub.clear()
      yield* Effect.orDie(runtime.devicePriorityRange(ordinal))
      const opened = {
        context: resultOf("cuDevicePrimaryCtxRetain"),
        pool: resultOf("cuMemPoolCreate"),
        allocations: resultOf("cuStreamCreateWithPriority", 0),
        releases: resultOf("cuStreamCreateWithPriority", 1)
      }
      stub.clear()
      return opened
    })

  /** Runs a program with device 0 opened. */
  const opened = <A, E>(
    program: (device: Opened) => Effect.Effect<A, E, CudaRuntime | Scope.Scope>,
    options?: StubOptions
  ) => onStub(stub, Effect.flatMap(openDevice(), program), options)

  /** The calls that an effect makes. */
  const callsOf = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
    Effect.gen(function*() {
      stub.clear()
      const result = yield* effect
      const lines = stub.lines()
      const calls = stub.calls()
      stub.clear()
      return { result, lines, calls }
    })

  return { openDevice, opened, callsOf }
}

/** The bytes of `CUmemPoolProps`, as logged. */
export const poolProperties = ({ device = 0, maxBytes = 0 }): string => {
  const bytes = Buffer.alloc(88)
  bytes.writeInt32LE(1, 0) // CU_MEM_ALLOCATION_TYPE_PINNED
  bytes.writeInt32LE(0, 4) // CU_MEM_HANDLE_TYPE_NONE
  bytes.writeInt32LE(1, 8) // CU_MEM_LOCATION_TYPE_DEVICE
  bytes.writeInt32LE(device, 12)
  bytes.writeBigUInt64LE(BigInt(maxBytes), 24)
  return bytes.toString("hex")
}
