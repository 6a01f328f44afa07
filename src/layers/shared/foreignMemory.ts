/**
 * Device memory of other code, by its address.
 */
import * as Effect from "effect/Effect"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { MemoryOptions, PointerAttributes } from "../CudaRuntime.ts"
import type { MemoryOperations } from "../runtime/memory.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument } from "./failures.ts"
import { refuseByteLength, withOptions } from "./memory.ts"
import type { Refusal } from "./ranges.ts"
import type { DeviceMemoryResource } from "./resources.ts"

export const foreignMemoryOperations = (
  core: Core
): Pick<MemoryOperations, "memoryFromAddress" | "memoryAttributes"> => ({
  memoryFromAddress: (device, address, byteLength, options = {}) =>
    core.onDevice("CudaMemory.fromAddress", device, () => fromAddress(core, device, address, byteLength, options)),
  memoryAttributes: (device, address) =>
    core.onDevice("CudaMemory.pointerAttributes", device, () => attributes(core, device, address))
})

const fromAddress = (
  core: Core,
  deviceIndex: number,
  address: number,
  byteLength: number,
  options: MemoryOptions
): Effect.Effect<DeviceMemoryResource, CudaError> => {
  const operation = "CudaMemory.fromAddress"
  const { memory } = core.backend
  const refused = refuseAddress(operation, address) ?? refuseByteLength(operation, byteLength)
  if (refused !== undefined) return refused
  const status = memory.attributes(deviceIndex, address)
  if (status !== success) return core.failOn(operation, status, deviceIndex, at(address))
  const elsewhere = refuseFound(operation, deviceIndex, address, byteLength, memory.found)
  if (elsewhere !== undefined) return elsewhere
  const made = withOptions(memory.adopt(deviceIndex, address, byteLength), options)
  made.isForeign = true
  core.deviceMemory.add(made)
  return Effect.succeed(made)
}

const attributes = (
  core: Core,
  deviceIndex: number,
  address: number
): Effect.Effect<PointerAttributes | undefined, CudaError> => {
  const operation = "CudaMemory.pointerAttributes"
  const refused = refuseAddress(operation, address)
  if (refused !== undefined) return refused
  const status = core.backend.memory.attributes(deviceIndex, address)
  if (status !== success) return core.failOn(operation, status, deviceIndex, at(address))
  return Effect.succeed(core.backend.memory.found)
}

const at = (address: number): string => `address 0x${address.toString(16)}`

const refuseAddress = (operation: string, address: number): Refusal =>
  Number.isSafeInteger(address) && address > 0
    ? undefined
    : refuseArgument(operation, "address", address, "an address: a positive integer below 2^53")

/** Refuses what is not device memory, memory of another device, and bytes beyond the end of the allocation. */
const refuseFound = (
  operation: string,
  deviceIndex: number,
  address: number,
  byteLength: number,
  found: PointerAttributes | undefined
): Refusal => {
  if (found?.kind !== "device") {
    const known = found === undefined ? "which CUDA does not know" : "which is memory of the host"
    return refuse(operation, {
      _tag: "InvalidArgument",
      argument: "address",
      value: `0x${address.toString(16)}, ${known}`,
      expected: `the address of memory of device ${deviceIndex}`
    })
  }
  if (!found.isManaged && found.deviceIndex !== deviceIndex) {
    const resources = [`the memory at 0x${address.toString(16)}`, `a buffer of device ${deviceIndex}`] as const
    return refuse(operation, { _tag: "DeviceMismatch", resources, deviceIndices: [found.deviceIndex, deviceIndex] })
  }
  const { range } = found
  const room = range === undefined ? Number.MAX_SAFE_INTEGER - address : range.address + range.byteLength - address
  return byteLength <= room
    ? undefined
    : refuseArgument(
      operation,
      "byteLength",
      byteLength,
      `at most ${room}, the bytes from the address to the end of its allocation`
    )
}
