/**
 * The options of a simulated runtime: defaults and validation.
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { deviceAttributes } from "../../cuda/flags.ts"
import type { DeviceAttribute } from "../../cuda/flags.ts"
import type { CudaError } from "../../CudaError.ts"
import type { DeviceProperties, PriorityRange } from "../CudaRuntime.ts"
import { refuseArgument } from "../shared/failures.ts"
import type { SimulatedDeviceOptions, SimulatedLatencies, SimulatedOptions } from "../SimulatedRuntime.ts"
import { nanoseconds } from "./durations.ts"
import type { SimulatedKernel } from "./kernelFunctions.ts"
import type { DeviceTraits, Latencies } from "./model/parts.ts"

/** The options of the machine, with defaults filled in. */
export interface ResolvedOptions {
  readonly devices: ReadonlyArray<ResolvedDevice>
  readonly driverVersion: number
  readonly peerAccess: (deviceIndex: number, peer: number) => boolean
  readonly connectsAll: boolean
  /** Bytes per second of copies between two devices. */
  readonly linkBandwidth: (from: number, to: number) => number
  /** Limit on pinned host memory, in bytes. */
  readonly hostMemory: number
  readonly recordTimeline: boolean
  /** False if copies and kernels only take time. */
  readonly hasData: boolean
  readonly kernels: ReadonlyMap<string, SimulatedKernel>
  /** The initial bytes of the global variables of every module. */
  readonly globals: ReadonlyMap<string, Uint8Array>
}

/** The options of a device, with defaults filled in. */
export interface ResolvedDevice {
  readonly properties: DeviceProperties
  readonly traits: DeviceTraits
  readonly priorityRange: PriorityRange
  readonly attributes: { readonly [A in DeviceAttribute]: number }
}

/** The options of a device, with latencies in nanoseconds. */
interface DeviceFields extends Omit<SimulatedDeviceOptions, "copyLatency" | "latencies"> {
  readonly copyLatency?: number | undefined
  readonly latencies?: Latencies | undefined
}

/** An invalid option. */
interface RefusedOption {
  readonly argument: string
  readonly value: unknown
  readonly expected: string
}

/** Fills in defaults, or fails with the first invalid option. */
export const resolve = (options: SimulatedOptions): Effect.Effect<ResolvedOptions, CudaError> =>
  Effect.suspend(() => {
    const { peerAccess = true } = options
    const devices = deviceFields(options.devices ?? 1)
    const refused = devices === undefined ? refusedDevices(options.devices) : refuseOptions(options, devices)
    if (devices === undefined || refused !== undefined) {
      const { argument, expected, value } = refused ?? refusedDevices(options.devices)
      return refuseArgument("SimulatedRuntime.make", argument, value, expected)
    }
    const resolved = devices.map(resolveDevice)
    const canAccess = typeof peerAccess === "function" ? peerAccess : () => peerAccess
    return Effect.succeed({
      devices: resolved,
      driverVersion: options.driverVersion ?? 13000,
      peerAccess: canAccess,
      connectsAll: options.peers === "all",
      linkBandwidth: linksOf(resolved, canAccess, options.linkBandwidth),
      hostMemory: options.hostMemory ?? Infinity,
      kernels: new Map(Object.entries(options.kernels ?? {})),
      globals: new Map(Object.entries(options.globals ?? {}).map(([name, initial]) => [name, bytesOf(initial)])),
      recordTimeline: options.recordTimeline ?? false,
      hasData: options.data !== "none"
    })
  })

/** Without peer access either way, copies go through the host. A bandwidth of the options that is not positive is not used. */
const linksOf = (
  devices: ReadonlyArray<ResolvedDevice>,
  peerAccess: ResolvedOptions["peerAccess"],
  linkBandwidth: SimulatedOptions["linkBandwidth"]
): ResolvedOptions["linkBandwidth"] =>
(from, to) => {
  const ends = [devices[from]!.traits, devices[to]!.traits]
  if (!peerAccess(from, to) && !peerAccess(to, from)) {
    return Math.min(
      ...ends.map(({ downloadBandwidth, hostBandwidth }) => Math.min(hostBandwidth, downloadBandwidth ?? Infinity))
    )
  }
  const own = linkBandwidth?.(from, to)
  return own !== undefined && own > 0 ? own : Math.min(...ends.map((traits) => traits.peerBandwidth))
}

/** The options of each device; undefined for an invalid number of devices or an empty array. */
const deviceFields = (
  devices: number | ReadonlyArray<SimulatedDeviceOptions>
): ReadonlyArray<DeviceFields> | undefined => {
  if (typeof devices === "number") {
    return Number.isInteger(devices) && devices >= 1 && devices <= 1024
      ? Array.from({ length: devices }, () => ({}))
      : undefined
  }
  if (!Array.isArray(devices) || devices.length === 0) return undefined
  const list: ReadonlyArray<SimulatedDeviceOptions> = devices
  return list.map((device) => ({
    ...device,
    copyLatency: nanosecondsOrNaN(device.copyLatency),
    latencies: device.latencies && latenciesOf(device.latencies)
  }))
}

/** NaN for what is not a duration. */
const nanosecondsOrNaN = (input: Duration.Input | undefined): number | undefined =>
  input === undefined ? undefined : nanoseconds(input) ?? NaN

const latenciesOf = (latencies: SimulatedLatencies): Latencies => ({
  upload: nanosecondsOrNaN(latencies.upload),
  download: nanosecondsOrNaN(latencies.download),
  copy: nanosecondsOrNaN(latencies.copy),
  peerCopy: nanosecondsOrNaN(latencies.peerCopy),
  fill: nanosecondsOrNaN(latencies.fill),
  kernel: nanosecondsOrNaN(latencies.kernel),
  graphKernel: nanosecondsOrNaN(latencies.graphKernel),
  timedRecord: nanosecondsOrNaN(latencies.timedRecord),
  wait: nanosecondsOrNaN(latencies.wait),
  waitAcrossEngines: nanosecondsOrNaN(latencies.waitAcrossEngines)
})

const refusedDevices = (devices: unknown): RefusedOption => ({
  argument: "devices",
  value: devices,
  expected: "a number of devices from 1 to 1024, or an array with the options of at least one device"
})

const refuseOptions = (options: SimulatedOptions, devices: ReadonlyArray<DeviceFields>): RefusedOption | undefined => {
  const { data = "moved", driverVersion, hostMemory, peers = "none" } = options
  if (data !== "moved" && data !== "none") return { argument: "data", value: data, expected: `"moved" or "none"` }
  if (peers !== "none" && peers !== "all") return { argument: "peers", value: peers, expected: `"none" or "all"` }
  if (driverVersion !== undefined && !(Number.isInteger(driverVersion) && driverVersion > 0)) {
    return { argument: "driverVersion", value: driverVersion, expected: "a CUDA version, for example 13000" }
  }
  if (hostMemory !== undefined && !(hostMemory >= 0)) {
    return { argument: "hostMemory", value: hostMemory, expected: "a non-negative number of bytes" }
  }
  for (const [ordinal, device] of devices.entries()) {
    const refused = refuseDevice(device, ordinal)
    if (refused !== undefined) return refused
  }
  return refuseSymbols(options)
}

const refuseSymbols = ({ globals = {}, kernels = {} }: SimulatedOptions): RefusedOption | undefined => {
  for (const [name, { attributes, cost }] of Object.entries(kernels)) {
    const refused = refuseAttributes(`kernels.${name}`, attributes)
    if (refused !== undefined) return refused
    if (cost === undefined || typeof cost === "function" || nanoseconds(cost) !== undefined) continue
    return { argument: `kernels.${name}.cost`, value: cost, expected: "a non-negative duration" }
  }
  for (const [name, initial] of Object.entries(globals)) {
    if (typeof initial !== "number" || canAllocate(initial)) continue
    const expected = "a Uint8Array, or a positive size in bytes that an array can have"
    return { argument: `globals.${name}`, value: initial, expected }
  }
  return undefined
}

/** Tried, because the longest array differs by version of Node.js, and memory may not suffice for it. */
const canAllocate = (byteLength: number): boolean => {
  try {
    return isCount(byteLength) && new Uint8Array(byteLength).byteLength === byteLength
  } catch {
    return false
  }
}

const bytesOf = (initial: Uint8Array | number): Uint8Array =>
  typeof initial === "number" ? new Uint8Array(initial) : initial

const resolveDevice = (fields: DeviceFields, ordinal: number): ResolvedDevice => {
  const traits = {
    memory: fields.memory ?? 16 * 2 ** 30,
    copyEngines: fields.copyEngines ?? 2,
    concurrentKernels: fields.concurrentKernels ?? 128,
    hostBandwidth: fields.hostBandwidth ?? 50e9,
    deviceBandwidth: fields.deviceBandwidth ?? 2e12,
    peerBandwidth: fields.peerBandwidth ?? 200e9,
    copyLatency: fields.copyLatency ?? 5000,
    downloadBandwidth: fields.downloadBandwidth,
    fillBandwidth: fields.fillBandwidth,
    latencies: fields.latencies
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

/** The first invalid option of a device. */
const refuseDevice = (fields: DeviceFields, ordinal: number): RefusedOption | undefined =>
  refuseAll(`devices[${ordinal}]`, fields, [
    ["memory", isBytes, "a positive integer"],
    ["copyEngines", isCount, "a positive integer"],
    ["concurrentKernels", isCount, "a positive integer"],
    ["hostBandwidth", isRate, "a positive number"],
    ["deviceBandwidth", isRate, "a positive number"],
    ["peerBandwidth", isRate, "a positive number"],
    ["downloadBandwidth", isRate, "a positive number"],
    ["fillBandwidth", isRate, "a positive number"],
    ["copyLatency", isCountOrZero, "a finite, non-negative duration"]
  ]) ?? refuseLatencies(fields, ordinal) ?? refusePriorities(fields, ordinal) ?? refuseCapability(fields, ordinal) ??
    refuseAttributes(`devices[${ordinal}]`, fields.attributes)

const refuseLatencies = ({ latencies = {} }: DeviceFields, ordinal: number): RefusedOption | undefined => {
  for (const [name, value] of Object.entries(latencies)) {
    if (value === undefined || isCountOrZero(value)) continue
    const expected = "a finite, non-negative duration"
    return { argument: `devices[${ordinal}].latencies.${name}`, value, expected }
  }
  return undefined
}

const refusePriorities = ({ priorityRange }: DeviceFields, ordinal: number): RefusedOption | undefined => {
  if (priorityRange === undefined) return undefined
  const { greatest, least } = priorityRange
  if (Number.isInteger(least) && Number.isInteger(greatest) && greatest <= 0 && least >= 0) return undefined
  return {
    argument: `devices[${ordinal}].priorityRange`,
    value: priorityRange,
    expected: "integers with greatest <= 0 <= least, since lower numbers have higher priority"
  }
}

const refuseCapability = ({ computeCapability }: DeviceFields, ordinal: number): RefusedOption | undefined =>
  computeCapability === undefined || (isCount(computeCapability.major) && isCountOrZero(computeCapability.minor))
    ? undefined
    : {
      argument: `devices[${ordinal}].computeCapability`,
      value: computeCapability,
      expected: "a compute capability, for example { major: 9, minor: 0 }"
    }

/** Smaller ranges than that of a C integer, for attributes that the simulation counts with. */
const attributeRanges: { readonly [name: string]: readonly [least: number, most: number] } = {
  warpSize: [1, 1024],
  maxThreadsPerBlock: [1, 65_536]
}

const refuseAttributes = (
  where: string,
  attributes: { readonly [name: string]: number | undefined } | undefined = {}
): RefusedOption | undefined => {
  for (const [name, value] of Object.entries(attributes)) {
    const [least, most] = attributeRanges[name] ?? [-0x8000_0000, 0x7fff_ffff]
    if (value === undefined || (Number.isInteger(value) && value >= least && value <= most)) continue
    return { argument: `${where}.attributes.${name}`, value, expected: `an integer from ${least} to ${most}` }
  }
  return undefined
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
  pciBusId: properties.index + 1,
  clusterLaunch: properties.computeCapability.major >= 9 ? 1 : 0
})

const absent = Object.fromEntries(Object.keys(deviceAttributes).map((name) => [name, 0])) as {
  readonly [A in DeviceAttribute]: number
}

/** The attributes of a data center GPU. Attributes not listed are 0. */
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
  ipcEventSupported: 1,
  numaId: -1,
  hostNumaId: -1
}
