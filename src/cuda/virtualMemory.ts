/**
 * Structs of the virtual memory functions. No Effect here.
 *
 * @since 0.1.0
 */
import { locationTypes, pinnedAllocationType, poolAccess } from "./flags.ts"

/** The granularity at which mapping is fastest (`CU_MEM_ALLOC_GRANULARITY_RECOMMENDED`). */
export const recommendedGranularity = 1

/** `CUmemAllocationProp`: pinned memory of a device, not shared with other processes, not compressed. */
export const allocationProperties = (deviceIndex: number): Uint8Array => {
  const bytes = new Uint8Array(32)
  const view = new DataView(bytes.buffer)
  view.setInt32(0, pinnedAllocationType, true)
  view.setInt32(8, locationTypes.device, true)
  view.setInt32(12, deviceIndex, true)
  return bytes
}

/** `CUmemAccessDesc`: a device reads and writes. */
export const accessDescriptor = (deviceIndex: number): Uint8Array => {
  const bytes = new Uint8Array(12)
  const view = new DataView(bytes.buffer)
  view.setInt32(0, locationTypes.device, true)
  view.setInt32(4, deviceIndex, true)
  view.setInt32(8, poolAccess.readWrite, true)
  return bytes
}
