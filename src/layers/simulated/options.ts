/**
 * The options of a simulated runtime: their defaults, and what is refused.
 */
import { deviceAttributes } from "../../cuda/flags.ts"
import type { DeviceAttribute } from "../../cuda/flags.ts"
import type { DeviceProperties, PriorityRange } from "../CudaRuntime.ts"
import type { DeviceTraits } from "./parts.ts"

/** A device as its runtime needs it. */
export interface ResolvedDevice {
  readonly properties: DeviceProperties
  readonly traits: DeviceTraits
  readonly priorityRange: PriorityRange
  readonly attributes: { readonly [A in DeviceAttribute]: number }
}

/** What can be said of a device; every field has a default. */
export interface DeviceFields {
  readonly name?: string | undefined
  readonly memory?: number | undefined
  readonly computeCapability?: { readonly major: number; readonly minor: number } | undefined
  readonly copyEngines?: number | undefined
  readonly hostBandwidth?: number | undefined
  readonly deviceBandwidth?: number | undefined
  readonly peerBandwidth?: number | undefined
  readonly copyLatency?: number | undefined
  readonly priorityRange?: PriorityRange | undefined
  readonly concurrentKernels?: number | undefined
  readonly attributes?: { readonly [A in DeviceAttribute]?: number } | undefined
}

/** An option that cannot be meant. */
export interface RefusedOption {
  readonly argument: string
  readonly value: unknown
  readonly expected: string
}

export const resolveDevice = (fields: DeviceFields, ordinal: number): ResolvedDevice => {
  const traits = {
    memory: fields.memory ?? 16 * 2 ** 30,
    copyEngines: fields.copyEngines ?? 2,
    concurrentKernels: fields.concurrentKernels ?? 128,
    hostBandwidth: fields.hostBandwidth ?? 50e9,
    deviceBandwidth: fields.deviceBandwidth ?? 2e12,
    peerBandwidth: fields.peerBandwidth ?? 200e9,
    copyLatency: fields.copyLatency ?? 5000
  }
  const properties = {
    index: ordinal,
    name: fields.name ?? "Simulated GPU",
    uuid: `GPU-00000000-0000-0000-0000-${(ordinal + 1).toString(16).padStart(12, "0")}`,
    computeCapability: fields.computeCapability ?? { major: 9, minor: 0 },
    totalMemory: traits.memory,
    pciBusId: `0000:${(ordinal + 1).toString(16).padStart(2, "0")}:00.0`
  }
  return {
    properties,
    traits,
    priorityRange: fields.priorityRange ?? { least: 0, greatest: -5 },
    attributes: { ...typicalAttributes, ...ownAttributes(properties, traits), ...fields.attributes }
  }
}

/** The first thing wrong with the options of a device. */
export const refuseDevice = (fields: DeviceFields, ordinal: number): RefusedOption | undefined =>
  refuseAll(`devices[${ordinal}]`, fields, [
    ["memory", isBytes, "a whole number of bytes above 0"],
    ["copyEngines", isCount, "a whole number above 0"],
    ["concurrentKernels", isCount, "a whole number above 0"],
    ["hostBandwidth", isRate, "bytes per second above 0"],
    ["deviceBandwidth", isRate, "bytes per second above 0"],
    ["peerBandwidth", isRate, "bytes per second above 0"],
    ["copyLatency", isCountOrZero, "nanoseconds, a whole number from 0"]
  ]) ?? refusePriorities(fields, ordinal)

const refusePriorities = ({ priorityRange }: DeviceFields, ordinal: number): RefusedOption | undefined => {
  if (priorityRange === undefined) return undefined
  const { greatest, least } = priorityRange
  if (Number.isInteger(least) && Number.isInteger(greatest) && greatest <= 0 && least >= 0) return undefined
  return {
    argument: `devices[${ordinal}].priorityRange`,
    value: priorityRange,
    expected: "integers with greatest <= 0 <= least, since a lower number is a higher priority"
  }
}

const refuseAll = (
  where: string,
  fields: DeviceFields,
  checks: ReadonlyArray<readonly [name: keyof DeviceFields, accepts: (value: unknown) => boolean, expected: string]>
): RefusedOption | undefined => {
  for (const [name, accepts, expected] of checks) {
    const value = fields[name]
    if (value !== undefined && !accepts(value)) return { argument: `${where}.${name}`, value, expected }
  }
  return undefined
}

const isCount = (value: unknown): boolean => Number.isSafeInteger(value) && Number(value) > 0
const isCountOrZero = (value: unknown): boolean => Number.isSafeInteger(value) && Number(value) >= 0
const isBytes = isCount
const isRate = (value: unknown): boolean => typeof value === "number" && value > 0

const ownAttributes = (
  properties: DeviceProperties,
  traits: DeviceTraits
): { readonly [A in DeviceAttribute]?: number } => ({
  computeCapabilityMajor: properties.computeCapability.major,
  computeCapabilityMinor: properties.computeCapability.minor,
  asyncEngineCount: traits.copyEngines,
  pciBusId: properties.index + 1
})

const absent = Object.fromEntries(Object.keys(deviceAttributes).map((name) => [name, 0])) as {
  readonly [A in DeviceAttribute]: number
}

/** What a data centre GPU answers; attributes that are not named are 0. */
const typicalAttributes: { readonly [A in DeviceAttribute]: number } = {
  ...absent,
  maxThreadsPerBlock: 1024,
  maxBlockDimX: 1024,
  maxBlockDimY: 1024,
  maxBlockDimZ: 64,
  maxGridDimX: 2 ** 31 - 1,
  maxGridDimY: 65535,
  maxGridDimZ: 65535,
  maxSharedMemoryPerBlock: 48 * 1024,
  totalConstantMemory: 64 * 1024,
  warpSize: 32,
  maxPitch: 2 ** 31 - 1,
  maxRegistersPerBlock: 65536,
  clockRate: 1_980_000,
  textureAlignment: 512,
  multiprocessorCount: 132,
  canMapHostMemory: 1,
  concurrentKernels: 1,
  eccEnabled: 1,
  memoryClockRate: 3_201_000,
  globalMemoryBusWidth: 6144,
  l2CacheSize: 60 * 2 ** 20,
  maxThreadsPerMultiprocessor: 2048,
  unifiedAddressing: 1,
  streamPrioritiesSupported: 1,
  maxSharedMemoryPerMultiprocessor: 228 * 1024,
  maxRegistersPerMultiprocessor: 65536,
  managedMemory: 1,
  concurrentManagedAccess: 1,
  computePreemptionSupported: 1,
  canUseHostPointerForRegisteredMem: 1,
  cooperativeLaunch: 1,
  maxSharedMemoryPerBlockOptin: 227 * 1024,
  hostRegisterSupported: 1,
  virtualMemoryManagementSupported: 1,
  maxBlocksPerMultiprocessor: 32,
  memoryPoolsSupported: 1,
  clusterLaunch: 1,
  ipcEventSupported: 1,
  numaId: -1,
  hostNumaId: -1
}
