/**
 * Every status that a CUDA driver call can return (`CUresult`, CUDA 13.0): its number, its name in the header, the
 * driver's description, whether it destroys the context, and whether a retry can succeed. No Effect here.
 *
 * @since 0.1.0
 */

/** The properties of a status. */
export interface StatusInfo {
  readonly code: number
  readonly name: string
  readonly description: string
  readonly advice: string
  readonly isSticky: boolean
  readonly isRetryable: boolean
}

const plain = (code: number, name: string, description: string, advice = ""): StatusInfo =>
  Object.freeze({ code, name, description, advice, isSticky: false, isRetryable: false })

/** A status after which the contexts of the process are lost: no call on any device succeeds. */
const sticky = (code: number, name: string, description: string, advice = ""): StatusInfo =>
  Object.freeze({ code, name, description, advice, isSticky: true, isRetryable: false })

/** A status after which the same call can succeed later. */
const retryable = (code: number, name: string, description: string, advice = ""): StatusInfo =>
  Object.freeze({ code, name, description, advice, isSticky: false, isRetryable: true })

/** `CUDA_SUCCESS`. */
export const success = 0

/** `CUDA_ERROR_NOT_READY`: an answer to a query, not a failure. */
export const notReady = 600

/** The statuses by tag: the header's name without its prefix, in Pascal case. */
export const statuses = {
  InvalidValue: plain(
    1,
    "CUDA_ERROR_INVALID_VALUE",
    "invalid argument",
    "A parameter is outside the range that the call accepts: check sizes, offsets, flags and pointers."
  ),
  OutOfMemory: retryable(
    2,
    "CUDA_ERROR_OUT_OF_MEMORY",
    "out of memory",
    "Release buffers or streams that are no longer needed, or allocate less, and try again."
  ),
  NotInitialized: plain(
    3,
    "CUDA_ERROR_NOT_INITIALIZED",
    "initialization error",
    "The driver was not initialized: build the runtime layer before calling it."
  ),
  Deinitialized: plain(
    4,
    "CUDA_ERROR_DEINITIALIZED",
    "driver shutting down",
    "The process is ending; release resources before the driver unloads."
  ),
  ProfilerDisabled: plain(5, "CUDA_ERROR_PROFILER_DISABLED", "profiler disabled while using external profiling tool"),
  ProfilerNotInitialized: plain(6, "CUDA_ERROR_PROFILER_NOT_INITIALIZED", "profiler not initialized"),
  ProfilerAlreadyStarted: plain(7, "CUDA_ERROR_PROFILER_ALREADY_STARTED", "profiler already started"),
  ProfilerAlreadyStopped: plain(8, "CUDA_ERROR_PROFILER_ALREADY_STOPPED", "profiler already stopped"),
  StubLibrary: plain(
    34,
    "CUDA_ERROR_STUB_LIBRARY",
    "CUDA driver is a stub library",
    "The loaded library is the toolkit's link-time stub. Use the library that comes with the driver instead."
  ),
  CallRequiresNewerDriver: plain(
    36,
    "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER",
    "API call is not supported in the installed CUDA driver",
    "Update the NVIDIA driver."
  ),
  DeviceUnavailable: retryable(
    46,
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA-capable device(s) is/are busy or unavailable",
    "Another process holds the device exclusively, or its compute mode forbids contexts."
  ),
  NoDevice: plain(
    100,
    "CUDA_ERROR_NO_DEVICE",
    "no CUDA-capable device is detected",
    "Check that the machine has an NVIDIA GPU, that it is visible (CUDA_VISIBLE_DEVICES, container flags), or use the simulated runtime."
  ),
  InvalidDevice: plain(
    101,
    "CUDA_ERROR_INVALID_DEVICE",
    "invalid device ordinal",
    "Use a device index from 0 to the device count minus one."
  ),
  DeviceNotLicensed: plain(102, "CUDA_ERROR_DEVICE_NOT_LICENSED", "device doesn't have valid Grid license"),
  InvalidImage: plain(
    200,
    "CUDA_ERROR_INVALID_IMAGE",
    "device kernel image is invalid",
    "The module is damaged or was not built for CUDA."
  ),
  InvalidContext: plain(
    201,
    "CUDA_ERROR_INVALID_CONTEXT",
    "invalid device context",
    "No context is current on the calling thread, or it was destroyed."
  ),
  ContextAlreadyCurrent: plain(202, "CUDA_ERROR_CONTEXT_ALREADY_CURRENT", "context already current"),
  MapFailed: plain(205, "CUDA_ERROR_MAP_FAILED", "mapping of buffer object failed"),
  UnmapFailed: plain(206, "CUDA_ERROR_UNMAP_FAILED", "unmapping of buffer object failed"),
  ArrayIsMapped: plain(207, "CUDA_ERROR_ARRAY_IS_MAPPED", "array is mapped"),
  AlreadyMapped: plain(208, "CUDA_ERROR_ALREADY_MAPPED", "resource already mapped"),
  NoBinaryForGpu: plain(
    209,
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
    "no kernel image is available for execution on the device",
    "Build the kernel for this device's compute capability, or ship PTX."
  ),
  AlreadyAcquired: plain(210, "CUDA_ERROR_ALREADY_ACQUIRED", "resource already acquired"),
  NotMapped: plain(211, "CUDA_ERROR_NOT_MAPPED", "resource not mapped"),
  NotMappedAsArray: plain(212, "CUDA_ERROR_NOT_MAPPED_AS_ARRAY", "resource not mapped as array"),
  NotMappedAsPointer: plain(213, "CUDA_ERROR_NOT_MAPPED_AS_POINTER", "resource not mapped as pointer"),
  EccUncorrectable: sticky(
    214,
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "uncorrectable ECC error encountered",
    "The device's memory is damaged: end the process, and have the GPU checked if this happens again."
  ),
  UnsupportedLimit: plain(215, "CUDA_ERROR_UNSUPPORTED_LIMIT", "limit is not supported on this architecture"),
  ContextAlreadyInUse: plain(
    216,
    "CUDA_ERROR_CONTEXT_ALREADY_IN_USE",
    "exclusive-thread device already in use by a different thread"
  ),
  PeerAccessUnsupported: plain(
    217,
    "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
    "peer access is not supported between these two devices"
  ),
  InvalidPtx: plain(
    218,
    "CUDA_ERROR_INVALID_PTX",
    "a PTX JIT compilation failed",
    "Read the compiler's log; the PTX is malformed or newer than the driver understands."
  ),
  InvalidGraphicsContext: plain(219, "CUDA_ERROR_INVALID_GRAPHICS_CONTEXT", "invalid OpenGL or DirectX context"),
  NvlinkUncorrectable: sticky(
    220,
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "uncorrectable NVLink error detected during the execution",
    "The link between devices failed: end the process, and have the hardware checked."
  ),
  JitCompilerNotFound: plain(221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "PTX JIT compiler library not found"),
  UnsupportedPtxVersion: plain(
    222,
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    "the provided PTX was compiled with an unsupported toolchain",
    "Update the driver, or compile with an older toolkit."
  ),
  JitCompilationDisabled: plain(223, "CUDA_ERROR_JIT_COMPILATION_DISABLED", "PTX JIT compilation was disabled"),
  UnsupportedExecAffinity: plain(
    224,
    "CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY",
    "the provided execution affinity is not supported"
  ),
  UnsupportedDevsideSync: plain(
    225,
    "CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC",
    "the provided PTX contains unsupported call to cudaDeviceSynchronize"
  ),
  Contained: sticky(
    226,
    "CUDA_ERROR_CONTAINED",
    "contained memory error was detected",
    "The context is lost after a contained memory error: end the process."
  ),
  InvalidSource: plain(300, "CUDA_ERROR_INVALID_SOURCE", "device kernel image is invalid"),
  FileNotFound: plain(301, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"),
  SharedObjectSymbolNotFound: plain(302, "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND", "shared object symbol not found"),
  SharedObjectInitFailed: plain(303, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", "shared object initialization failed"),
  OperatingSystem: plain(304, "CUDA_ERROR_OPERATING_SYSTEM", "OS call failed or operation not supported on this OS"),
  InvalidHandle: plain(
    400,
    "CUDA_ERROR_INVALID_HANDLE",
    "invalid resource handle",
    "The handle was destroyed, belongs to another context, or does not allow this call."
  ),
  IllegalState: plain(401, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"),
  LossyQuery: plain(402, "CUDA_ERROR_LOSSY_QUERY", "attempted introspection would be semantically lossy"),
  NotFound: plain(500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"),
  NotReady: retryable(600, "CUDA_ERROR_NOT_READY", "device not ready", "The work has not finished: wait for it first."),
  IllegalAddress: sticky(
    700,
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "an illegal memory access was encountered",
    "A kernel accessed memory out of bounds, and the context is lost: find the access with compute-sanitizer, and restart the process."
  ),
  LaunchOutOfResources: plain(
    701,
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
    "too many resources requested for launch",
    "Launch fewer threads per block, or use fewer registers or less shared memory."
  ),
  LaunchTimeout: sticky(
    702,
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "the launch timed out and was terminated",
    "The kernel ran longer than the display watchdog allows, and the context is lost: restart the process."
  ),
  LaunchIncompatibleTexturing: plain(
    703,
    "CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING",
    "launch uses incompatible texturing mode"
  ),
  PeerAccessAlreadyEnabled: plain(704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled"),
  PeerAccessNotEnabled: plain(705, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access has not been enabled"),
  PrimaryContextActive: plain(
    708,
    "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE",
    "cannot set while device is active in this process"
  ),
  ContextIsDestroyed: sticky(
    709,
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "context is destroyed",
    "Other code destroyed or reset the device's context: restart the process."
  ),
  Assert: sticky(
    710,
    "CUDA_ERROR_ASSERT",
    "device-side assert triggered",
    "An assertion in a kernel failed, and the context is lost: restart the process."
  ),
  TooManyPeers: plain(711, "CUDA_ERROR_TOO_MANY_PEERS", "peer mapping resources exhausted"),
  HostMemoryAlreadyRegistered: plain(
    712,
    "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
    "part or all of the requested memory range is already mapped"
  ),
  HostMemoryNotRegistered: plain(
    713,
    "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
    "pointer does not correspond to a registered memory region"
  ),
  HardwareStackError: sticky(
    714,
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "hardware stack error",
    "The context is lost: restart the process."
  ),
  IllegalInstruction: sticky(
    715,
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "an illegal instruction was encountered",
    "The context is lost: restart the process."
  ),
  MisalignedAddress: sticky(
    716,
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "misaligned address",
    "A kernel accessed memory at an address that is not aligned for its type, and the context is lost: restart the process."
  ),
  InvalidAddressSpace: sticky(
    717,
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "operation not supported on global/shared address space",
    "The context is lost: restart the process."
  ),
  InvalidPc: sticky(
    718,
    "CUDA_ERROR_INVALID_PC",
    "invalid program counter",
    "The context is lost: restart the process."
  ),
  LaunchFailed: sticky(
    719,
    "CUDA_ERROR_LAUNCH_FAILED",
    "unspecified launch failure",
    "A kernel failed while running, and the context is lost: restart the process."
  ),
  CooperativeLaunchTooLarge: plain(
    720,
    "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
    "too many blocks in cooperative launch"
  ),
  TensorMemoryLeak: sticky(
    721,
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    "a kernel left tensor memory allocated when it ended",
    "The context is lost: restart the process."
  ),
  NotPermitted: plain(800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"),
  NotSupported: plain(
    801,
    "CUDA_ERROR_NOT_SUPPORTED",
    "operation not supported",
    "This device, driver or platform lacks the feature."
  ),
  SystemNotReady: retryable(
    802,
    "CUDA_ERROR_SYSTEM_NOT_READY",
    "system not yet initialized",
    "Wait until the system's fabric manager or driver services have started."
  ),
  SystemDriverMismatch: plain(
    803,
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    "system has unsupported display driver / cuda driver combination",
    "Restart after the driver update, or install matching versions."
  ),
  CompatNotSupportedOnDevice: plain(
    804,
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
    "forward compatibility was attempted on non supported HW",
    "Remove the compatibility package, or update the driver."
  ),
  MpsConnectionFailed: retryable(
    805,
    "CUDA_ERROR_MPS_CONNECTION_FAILED",
    "MPS client failed to connect to the MPS control daemon or the MPS server"
  ),
  MpsRpcFailure: plain(
    806,
    "CUDA_ERROR_MPS_RPC_FAILURE",
    "the remote procedural call between the MPS server and the MPS client failed"
  ),
  MpsServerNotReady: retryable(
    807,
    "CUDA_ERROR_MPS_SERVER_NOT_READY",
    "MPS server is not ready to accept new MPS client requests"
  ),
  MpsMaxClientsReached: retryable(808, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", "maximum number of MPS clients reached"),
  MpsMaxConnectionsReached: retryable(
    809,
    "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED",
    "maximum number of MPS connections reached"
  ),
  MpsClientTerminated: sticky(
    810,
    "CUDA_ERROR_MPS_CLIENT_TERMINATED",
    "the MPS client has been terminated by the server",
    "The context is lost: restart the process."
  ),
  CdpNotSupported: plain(
    811,
    "CUDA_ERROR_CDP_NOT_SUPPORTED",
    "the program uses CUDA dynamic parallelism, which this setup does not support"
  ),
  CdpVersionMismatch: plain(
    812,
    "CUDA_ERROR_CDP_VERSION_MISMATCH",
    "the program contains an unsupported interaction between versions of CUDA dynamic parallelism"
  ),
  StreamCaptureUnsupported: plain(
    900,
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
    "operation not permitted when stream is capturing",
    "A stream is being captured on this thread: make the call before or after the capture, or capture in relaxed mode."
  ),
  StreamCaptureInvalidated: plain(
    901,
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
    "operation failed due to a previous error during capture"
  ),
  StreamCaptureMerge: plain(
    902,
    "CUDA_ERROR_STREAM_CAPTURE_MERGE",
    "operation would result in a merge of separate capture sequences"
  ),
  StreamCaptureUnmatched: plain(
    903,
    "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
    "capture was not ended in the same stream as it began"
  ),
  StreamCaptureUnjoined: plain(
    904,
    "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
    "capturing stream has unjoined work",
    "Join every forked stream back to the one that began the capture."
  ),
  StreamCaptureIsolation: plain(
    905,
    "CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
    "dependency created on uncaptured work in another stream"
  ),
  StreamCaptureImplicit: plain(
    906,
    "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
    "operation would make the legacy stream depend on a capturing blocking stream"
  ),
  CapturedEvent: plain(
    907,
    "CUDA_ERROR_CAPTURED_EVENT",
    "operation not permitted on an event last recorded in a capturing stream"
  ),
  StreamCaptureWrongThread: plain(
    908,
    "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
    "attempt to terminate a thread-local capture sequence from another thread"
  ),
  Timeout: retryable(909, "CUDA_ERROR_TIMEOUT", "wait operation timed out"),
  GraphExecUpdateFailure: plain(
    910,
    "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE",
    "the graph update was not performed because it included changes which violated constraints"
  ),
  ExternalDevice: sticky(
    911,
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "an async error has occurred in external entity outside of CUDA",
    "The context is lost: restart the process."
  ),
  InvalidClusterSize: plain(
    912,
    "CUDA_ERROR_INVALID_CLUSTER_SIZE",
    "a kernel launch error has occurred due to cluster misconfiguration"
  ),
  FunctionNotLoaded: plain(
    913,
    "CUDA_ERROR_FUNCTION_NOT_LOADED",
    "a function handle was not loaded when it was needed"
  ),
  InvalidResourceType: plain(914, "CUDA_ERROR_INVALID_RESOURCE_TYPE", "the resource type is not valid for this call"),
  InvalidResourceConfiguration: plain(
    915,
    "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION",
    "the resource configuration is not valid"
  ),
  KeyRotation: retryable(916, "CUDA_ERROR_KEY_ROTATION", "the confidential-computing key is being rotated"),
  Unknown: plain(
    999,
    "CUDA_ERROR_UNKNOWN",
    "unknown error",
    "The driver does not know what failed. Look for an Xid error in the kernel log (dmesg)."
  )
} satisfies Record<string, StatusInfo>

/** The tag of a status in the table. */
export type StatusTag = keyof typeof statuses
