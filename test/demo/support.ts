/**
 * In-memory sources and misbehaving runtimes, for the tests of the demo.
 */
import { CudaRuntime, SimulatedRuntime } from "effect-cuda"
import type { CudaError } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Kernels from "../../examples/demo/Kernels.ts"
import type { Source } from "../../examples/demo/Source.ts"
import type { Summary } from "../../examples/demo/Summary.ts"
import { checkedMachine } from "../support/checkedMachine.ts"

/** Bytes whose period is no possible chunk size. */
export const makeBytes = (byteLength: number): Uint8Array =>
  Uint8Array.from({ length: byteLength }, (_, index) => (index * 31 + (index >> 8) * 7 + 1) % 251)

/** The expected summary of bytes, computed bit by bit, so that it shares no code with the implementation under test. */
export const plainSummary = (bytes: Uint8Array): Summary => {
  const counts = new BigUint64Array(256)
  let checksum = 0xffffffff
  for (const byte of bytes) {
    counts[byte]! += 1n
    checksum ^= byte
    for (let bit = 0; bit < 8; bit++) checksum = (checksum >>> 1) ^ (checksum & 1 ? 0xedb88320 : 0)
  }
  return { counts, checksum: ~checksum >>> 0 }
}

/** A source whose reads complete on a later turn of the event loop, like a file's. */
export const memorySource = (bytes: Uint8Array): Source => ({
  name: "memory",
  byteLength: bytes.byteLength,
  read: (into, offset) =>
    Effect.map(Effect.yieldNow, () => {
      into.set(bytes.subarray(offset, offset + into.byteLength))
    })
})

/** A device that takes almost no time. */
export const fastMachine = SimulatedRuntime.layer({
  devices: [{ hostBandwidth: 1e12, deviceBandwidth: 1e12, copyLatency: 0 }],
  kernels: Kernels.simulated(1e12)
})

/** The same device, on which races fail. */
export const fastRuntime = checkedMachine(fastMachine)

type Service = CudaRuntime.CudaRuntimeService

/** The same runtime with every operation wrapped. */
export const wrapEvery = (
  runtime: Service,
  around: (
    operation: Effect.Effect<unknown, CudaError.CudaError>,
    name: string
  ) => Effect.Effect<unknown, CudaError.CudaError>
): Service =>
  new Proxy(runtime, {
    get: (target, name) => {
      const member: unknown = Reflect.get(target, name)
      if (typeof member !== "function") return member
      return (...args: ReadonlyArray<unknown>) => around(Reflect.apply(member, target, args), String(name))
    }
  })

/** The runtime of `fastRuntime`, modified. */
export const changedRuntime = (change: (runtime: Service) => Service) =>
  Layer.effect(CudaRuntime.CudaRuntime, Effect.map(CudaRuntime.CudaRuntime, change)).pipe(Layer.provide(fastRuntime))
