/**
 * Numbers of the CUDA C interface: flags, enumeration values and special handles. No Effect here.
 *
 * @since 0.1.0
 */
import type { CUstream } from "./handles.ts"

/** `CUstream_flags`. */
export const streamFlags = { default: 0, nonBlocking: 1 } as const

/** The handles of a context's default streams. The context must be current when they are used. */
export const defaultStreamHandles = { legacy: 1 as CUstream, perThread: 2 as CUstream } as const

/** `CUdevice_P2PAttribute`. */
export const peerAttributes = {
  performanceRank: 1,
  accessSupported: 2,
  nativeAtomicSupported: 3,
  arrayAccessSupported: 4
} as const

/** The name of a peer attribute: a property of the link between two devices. */
export type PeerAttribute = keyof typeof peerAttributes

/** `CUevent_flags`. */
export const eventFlags = { default: 0, blockingSync: 1, disableTiming: 2, interprocess: 4 } as const

/** Size of a `CUipcEventHandle` in bytes. */
export const ipcHandleSize = 64

/** Size of a `CUmemPoolPtrExportData` and of a `CUipcMemHandle` in bytes. */
export const memoryHandleSize = 64

/** Access of other devices to opened memory is set up when it is first used (`CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`). */
export const ipcLazyPeerAccess = 1

/** `CUmemAllocationHandleType`. */
export const allocationHandleTypes = { none: 0, posixFileDescriptor: 1 } as const

/** Pins memory for all contexts (`CU_MEMHOSTREGISTER_PORTABLE`). */
export const hostRegisterPortable = 1

/** `CUmemPool_attribute`. */
export const poolAttributes = {
  reuseFollowEventDependencies: 1,
  reuseAllowOpportunistic: 2,
  reuseAllowInternalDependencies: 3,
  releaseThreshold: 4,
  reservedCurrent: 5,
  reservedHigh: 6,
  usedCurrent: 7,
  usedHigh: 8
} as const

/** Memory that cannot migrate from its device (`CU_MEM_ALLOCATION_TYPE_PINNED`). */
export const pinnedAllocationType = 1

/** Managed memory that every stream may access (`CU_MEM_ATTACH_GLOBAL`). */
export const attachGlobal = 1

/** `CUmemLocationType`. */
export const locationTypes = { device: 1, host: 2 } as const

/** `CUmem_advise`. */
export const memoryAdvice = {
  setReadMostly: 1,
  unsetReadMostly: 2,
  setPreferredLocation: 3,
  unsetPreferredLocation: 4,
  setAccessedBy: 5,
  unsetAccessedBy: 6
} as const

/** Advice to the driver about the use of managed memory. */
export type MemoryAdvice = keyof typeof memoryAdvice

/** `CUpointer_attribute`, by the names that are needed. */
export const pointerAttributes = {
  memoryType: 2,
  isManaged: 8,
  deviceOrdinal: 9,
  rangeStart: 11,
  rangeSize: 12,
  pool: 17
} as const

/** `CUmemAccess_flags`. */
export const poolAccess = { none: 0, readWrite: 3 } as const

/** `CUmemorytype`. */
export const memoryTypes = { host: 1, device: 2 } as const

/** The copy reads its source in stream order (`CU_MEMCPY_SRC_ACCESS_ORDER_STREAM`). */
export const copyInStreamOrder = 1

/** `CUjit_option`. */
export const jitOptions = { errorLogBuffer: 5, errorLogBufferSize: 6 } as const

/** `CUlaunchAttributeID`. */
export const launchAttributes = {
  cooperative: 2,
  clusterDimension: 4,
  programmaticStreamSerialization: 6,
  priority: 8
} as const

/** Launches use the priorities of the nodes, not that of the stream (`CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY`). */
export const graphUsesNodePriority = 8

/**
 * `CUgraphEdgeData` of an edge that ends when the kernel before it lets its dependents start
 * (`CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC`, `CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC`).
 */
export const programmaticEdge = { fromPort: 1, toPort: 0, type: 1 } as const

/** `CUgraphNodeType`, by the names that are needed. */
export const graphNodeTypes = { allocate: 10, free: 11, conditional: 13 } as const

/** `CUstreamCaptureMode`: calls elsewhere in the process neither fail nor disturb a relaxed capture. */
export const captureModes = { relaxed: 2 } as const

/** `CUgraphConditionalNodeType`. */
export const conditionTypes = { if: 0, while: 1 } as const

/** Kernel attributes (`CUfunction_attribute`) by name. */
export const kernelAttributes = {
  maxThreadsPerBlock: 0,
  sharedSizeBytes: 1,
  constSizeBytes: 2,
  localSizeBytes: 3,
  numRegs: 4,
  ptxVersion: 5,
  binaryVersion: 6,
  cacheModeCa: 7,
  maxDynamicSharedSizeBytes: 8,
  preferredSharedMemoryCarveout: 9,
  clusterSizeMustBeSet: 10,
  requiredClusterWidth: 11,
  requiredClusterHeight: 12,
  requiredClusterDepth: 13,
  nonPortableClusterSizeAllowed: 14,
  clusterSchedulingPolicyPreference: 15
} as const

/** The name of a kernel attribute. */
export type KernelAttribute = keyof typeof kernelAttributes

/** The kernel attributes that can be set. */
export const settableKernelAttributes = [
  "maxDynamicSharedSizeBytes",
  "preferredSharedMemoryCarveout",
  "requiredClusterWidth",
  "requiredClusterHeight",
  "requiredClusterDepth",
  "nonPortableClusterSizeAllowed",
  "clusterSchedulingPolicyPreference"
] as const satisfies ReadonlyArray<KernelAttribute>

/** The name of a kernel attribute that can be set. */
export type SettableKernelAttribute = (typeof settableKernelAttributes)[number]

/** The oldest supported CUDA version of the driver: 12.0, the first with `cuStreamGetId`. */
export const minimumDriverVersion = 12000

/** Device attributes (`CUdevice_attribute`) by name. */
export const deviceAttributes = {
  maxThreadsPerBlock: 1,
  maxBlockDimX: 2,
  maxBlockDimY: 3,
  maxBlockDimZ: 4,
  maxGridDimX: 5,
  maxGridDimY: 6,
  maxGridDimZ: 7,
  maxSharedMemoryPerBlock: 8,
  totalConstantMemory: 9,
  warpSize: 10,
  maxPitch: 11,
  maxRegistersPerBlock: 12,
  clockRate: 13,
  textureAlignment: 14,
  multiprocessorCount: 16,
  kernelExecTimeout: 17,
  integrated: 18,
  canMapHostMemory: 19,
  computeMode: 20,
  concurrentKernels: 31,
  eccEnabled: 32,
  pciBusId: 33,
  pciDeviceId: 34,
  tccDriver: 35,
  memoryClockRate: 36,
  globalMemoryBusWidth: 37,
  l2CacheSize: 38,
  maxThreadsPerMultiprocessor: 39,
  asyncEngineCount: 40,
  unifiedAddressing: 41,
  pciDomainId: 50,
  computeCapabilityMajor: 75,
  computeCapabilityMinor: 76,
  streamPrioritiesSupported: 78,
  maxSharedMemoryPerMultiprocessor: 81,
  maxRegistersPerMultiprocessor: 82,
  managedMemory: 83,
  multiGpuBoard: 84,
  pageableMemoryAccess: 88,
  concurrentManagedAccess: 89,
  computePreemptionSupported: 90,
  canUseHostPointerForRegisteredMem: 91,
  cooperativeLaunch: 95,
  maxSharedMemoryPerBlockOptin: 97,
  hostRegisterSupported: 99,
  virtualMemoryManagementSupported: 102,
  maxBlocksPerMultiprocessor: 106,
  memoryPoolsSupported: 115,
  gpuDirectRdmaSupported: 116,
  clusterLaunch: 120,
  ipcEventSupported: 125,
  numaId: 131,
  multicastSupported: 132,
  hostNumaId: 134
} as const

/** The name of a device attribute. */
export type DeviceAttribute = keyof typeof deviceAttributes
