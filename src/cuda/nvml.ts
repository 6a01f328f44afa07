/**
 * NVML, the driver's management library (`libnvidia-ml`): its functions with their koffi types, its statuses, the layouts of
 * its structs, and the names of its bits. No Effect here.
 *
 * @since 0.1.0
 */
import type { StatusInfo } from "./status.ts"

const memory = "void *"
const text = "str"
const int = "int"
const uint = "uint32_t"
const long = "uint64_t"
const device = "uintptr_t"
const eventSet = "uintptr_t"

/** The functions that every NVML has, with their parameters. Each returns an `nvmlReturn_t`. */
export const nvmlFunctions = {
  nvmlInit_v2: [],
  nvmlShutdown: [],
  nvmlDeviceGetHandleByUUID: [text, memory]
} as const

/** Functions that an NVML may lack. Without one, its field is not supported. */
export const optionalNvmlFunctions = {
  nvmlDeviceGetUtilizationRates: [device, memory],
  nvmlDeviceGetMemoryInfo_v2: [device, memory],
  nvmlDeviceGetTemperature: [device, int, memory],
  nvmlDeviceGetPowerUsage: [device, memory],
  nvmlDeviceGetEnforcedPowerLimit: [device, memory],
  nvmlDeviceGetClockInfo: [device, int, memory],
  nvmlDeviceGetCurrentClocksEventReasons: [device, memory],
  /** The name of the function before it until driver 535. */
  nvmlDeviceGetCurrentClocksThrottleReasons: [device, memory],
  nvmlDeviceGetTotalEccErrors: [device, int, int, memory],
  nvmlDeviceGetTotalEnergyConsumption: [device, memory],
  nvmlDeviceGetComputeRunningProcesses_v3: [device, memory, memory],
  nvmlEventSetCreate: [memory],
  nvmlDeviceRegisterEvents: [device, long, eventSet],
  nvmlEventSetWait_v2: [eventSet, memory, uint],
  nvmlEventSetFree: [eventSet]
} as const

/** The name of a function in the tables. */
export type NvmlFunctionName = keyof typeof nvmlFunctions | keyof typeof optionalNvmlFunctions

/** An argument of a call: a number or handle, a text, or memory to read or write. */
export type NvmlArgument = number | string | ArrayBufferView

/** A bound function: called on this thread, or on a pool thread (`inTurn`). */
export interface NvmlFunction {
  (...values: ReadonlyArray<NvmlArgument>): number
  readonly async: (...values: ReadonlyArray<NvmlArgument | ((error: unknown, status: number) => void)>) => void
}

/** The functions bound to a library. */
export type NvmlFunctions =
  & { readonly [Name in keyof typeof nvmlFunctions]: NvmlFunction }
  & { readonly [Name in keyof typeof optionalNvmlFunctions]: NvmlFunction | undefined }

/** `NVML_SUCCESS`. */
export const nvmlSuccess = 0

/** Statuses that are answers, not failures: a buffer that is too small, and no event yet. */
export const nvmlInsufficientSize = 7
export const nvmlTimeout = 10

/** The status for a function that the library lacks. */
export const nvmlFunctionNotFound = 13

/** The statuses of a field that a device, its driver or the rights of the process do not offer. */
export const nvmlAbsent: ReadonlySet<number> = new Set([3, 4, nvmlFunctionNotFound, 21, 25])

const rows: ReadonlyArray<readonly [code: number, name: string, description: string, advice?: string]> = [
  [1, "UNINITIALIZED", "NVML was not initialized"],
  [2, "INVALID_ARGUMENT", "an argument is invalid"],
  [3, "NOT_SUPPORTED", "the device does not support this"],
  [4, "NO_PERMISSION", "the process lacks the permission", "Run with more rights, or ask the administrator."],
  [5, "ALREADY_INITIALIZED", "NVML was already initialized"],
  [6, "NOT_FOUND", "no such object", "NVML may see other devices than CUDA does, in containers and with MIG."],
  [7, "INSUFFICIENT_SIZE", "the buffer is too small"],
  [8, "INSUFFICIENT_POWER", "the device's power cables are not properly attached"],
  [9, "DRIVER_NOT_LOADED", "the NVIDIA driver is not loaded", "Load the kernel module of the driver."],
  [10, "TIMEOUT", "the time ran out"],
  [11, "IRQ_ISSUE", "the kernel found a problem with the device's interrupts"],
  [12, "LIBRARY_NOT_FOUND", "a library that NVML needs could not be loaded"],
  [13, "FUNCTION_NOT_FOUND", "this NVML lacks the function", "Update the NVIDIA driver."],
  [14, "CORRUPTED_INFOROM", "the device's infoROM is damaged"],
  [15, "GPU_IS_LOST", "the GPU is not reachable any more", "Restart the machine, and have the GPU checked."],
  [16, "RESET_REQUIRED", "the GPU needs a reset", "Reset the GPU, or restart the machine."],
  [17, "OPERATING_SYSTEM", "the operating system refused the GPU control device"],
  [18, "LIB_RM_VERSION_MISMATCH", "the driver and NVML have different versions", "Restart after the driver update."],
  [19, "IN_USE", "the GPU is in use"],
  [20, "MEMORY", "there is not enough memory"],
  [21, "NO_DATA", "there is no data"],
  [22, "VGPU_ECC_NOT_SUPPORTED", "not available on a virtual GPU while ECC is on"],
  [23, "INSUFFICIENT_RESOURCES", "a resource other than memory ran out"],
  [24, "FREQ_NOT_SUPPORTED", "the frequency is not supported"],
  [25, "ARGUMENT_VERSION_MISMATCH", "this NVML does not know the version of a struct", "Update the NVIDIA driver."],
  [26, "DEPRECATED", "the function is no longer available"],
  [27, "NOT_READY", "the system is not ready"],
  [28, "GPU_NOT_FOUND", "no GPU was found"],
  [29, "INVALID_STATE", "the state of the device does not allow this"],
  [999, "UNKNOWN", "an internal error of the driver"]
]

/** What a status means. None ends contexts, because NVML uses none. */
type NvmlStatus = Omit<StatusInfo, "isSticky">

/** Statuses after which the same call can succeed later. */
const retryable: ReadonlySet<number> = new Set([10, 19, 23, 27])

const statuses = new Map(rows.map(([code, name, description, advice = ""]) =>
  [
    code,
    Object.freeze<NvmlStatus>({
      code,
      name: `NVML_ERROR_${name}`,
      description,
      advice,
      isRetryable: retryable.has(code)
    })
  ] as const
))

/** The properties of a status. */
export const nvmlStatus = (code: number): NvmlStatus =>
  statuses.get(code) ?? {
    code,
    name: `nvmlReturn_t ${code}`,
    description: "unknown to this version of effect-cuda",
    advice: "",
    isRetryable: false
  }

/** `nvmlUtilization_t`: percentages. */
export const utilizationLayout = { size: 8, gpu: 0, memory: 4 } as const

/** `nvmlMemory_v2_t`. */
export const memoryLayout = { size: 40, version: 0, total: 8, reserved: 16, free: 24, used: 32 } as const

/** The version field of a struct: its size, and the number of its layout in the upper byte. */
export const memoryVersion = memoryLayout.size + 2 * 2 ** 24

/** `nvmlProcessInfo_v2_t`, which version 3 of the call fills. */
export const processLayout = { size: 24, pid: 0, memory: 8, gpuInstance: 16, computeInstance: 20 } as const

/** `nvmlEventData_t`. */
export const eventLayout = { size: 32, device: 0, type: 8, data: 16, gpuInstance: 24, computeInstance: 28 } as const

/** The memory of a process that the driver cannot tell. */
export const nvmlNotAvailable = 2n ** 64n - 1n

/** `nvmlEventTypeXidCriticalError`. */
export const xidEvents = 8

/** `NVML_TEMPERATURE_GPU`. */
export const gpuTemperature = 0

/** `nvmlClockType_t`. */
export const nvmlClocks = { sm: 1, memory: 2 } as const

/** `nvmlMemoryErrorType_t`, and `NVML_VOLATILE_ECC`: counted since the driver was loaded. */
export const eccErrors = { corrected: 0, uncorrected: 1, volatile: 0 } as const

/** Why clocks are below their maximum, by bit. */
export const throttleReasons = {
  gpuIdle: 0x1,
  applicationsClocksSetting: 0x2,
  swPowerCap: 0x4,
  hwSlowdown: 0x8,
  syncBoost: 0x10,
  swThermalSlowdown: 0x20,
  hwThermalSlowdown: 0x40,
  hwPowerBrakeSlowdown: 0x80,
  displayClockSetting: 0x100
} as const
