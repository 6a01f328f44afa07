/**
 * NVRTC, NVIDIA's run-time compiler (`libnvrtc`): its functions with their koffi types, its results, and the options
 * that do more than change the code. No Effect here.
 *
 * @since 0.1.0
 */
import type { StatusInfo } from "./status.ts"

const program = "uintptr_t"
const memory = "void *"
const text = "str"
const texts = "const char **"
const int = "int"

/** The required functions with their parameters, all present since NVRTC 11.2. Each returns an `nvrtcResult`. */
export const nvrtcFunctions = {
  nvrtcVersion: [memory, memory],
  nvrtcGetNumSupportedArchs: [memory],
  nvrtcGetSupportedArchs: [memory],
  nvrtcCreateProgram: [memory, text, text, int, texts, texts],
  nvrtcDestroyProgram: [memory],
  nvrtcAddNameExpression: [program, text],
  nvrtcCompileProgram: [program, int, texts],
  nvrtcGetLoweredName: [program, text, memory],
  nvrtcGetProgramLogSize: [program, memory],
  nvrtcGetProgramLog: [program, memory],
  nvrtcGetPTXSize: [program, memory],
  nvrtcGetPTX: [program, memory],
  nvrtcGetCUBINSize: [program, memory],
  nvrtcGetCUBIN: [program, memory]
} as const

/** NVRTC 12.8 and later: makes a compilation poll a C function for whether to continue. */
export const setFlowCallback = { name: "nvrtcSetFlowCallback", parameters: [program, program, memory] } as const

/** The name of a function in the table. */
export type NvrtcFunctionName = keyof typeof nvrtcFunctions

/** The JavaScript type of each parameter type. */
interface ParameterTypes {
  readonly [program]: number
  readonly [memory]: ArrayBufferView
  readonly [text]: string
  readonly [texts]: ReadonlyArray<string>
  readonly [int]: number
}

type Arguments<Types extends ReadonlyArray<keyof ParameterTypes>> = {
  readonly [Index in keyof Types]: ParameterTypes[Types[Index]]
}

/** The functions bound to a library; each runs on a pool thread and resolves with its result. */
export type NvrtcFunctions = {
  readonly [Name in NvrtcFunctionName]: (
    ...parameters: Arguments<(typeof nvrtcFunctions)[Name]>
  ) => Promise<number>
}

/** `NVRTC_SUCCESS`. */
export const nvrtcSuccess = 0

/** `NVRTC_ERROR_INVALID_OPTION`. */
export const nvrtcInvalidOption = 5

/** `NVRTC_ERROR_COMPILATION`. */
export const nvrtcCompilation = 6

const result = (code: number, name: string, description: string, advice = "", isRetryable = false): StatusInfo =>
  Object.freeze({ code, name: `NVRTC_ERROR_${name}`, description, advice, isSticky: false, isRetryable })

const results: ReadonlyMap<number, StatusInfo> = new Map(
  [
    result(1, "OUT_OF_MEMORY", "the compiler ran out of host memory", "Run fewer compilations at once.", true),
    result(2, "PROGRAM_CREATION_FAILURE", "the compiler could not create the program"),
    result(3, "INVALID_INPUT", "an argument of the NVRTC function is invalid"),
    result(4, "INVALID_PROGRAM", "the program is invalid"),
    result(nvrtcInvalidOption, "INVALID_OPTION", "an option is invalid"),
    result(nvrtcCompilation, "COMPILATION", "the source does not compile"),
    result(
      7,
      "BUILTIN_OPERATION_FAILURE",
      "a part of the compiler is missing",
      "NVRTC needs libnvrtc-builtins of the same version next to it. Install the complete package, or point nvrtcPath to one."
    ),
    result(8, "NO_NAME_EXPRESSIONS_AFTER_COMPILATION", "a name expression was added after the compilation"),
    result(9, "NO_LOWERED_NAMES_BEFORE_COMPILATION", "a lowered name was requested before the compilation"),
    result(10, "NAME_EXPRESSION_NOT_VALID", "a name expression is invalid"),
    result(11, "INTERNAL_ERROR", "the compiler failed internally"),
    result(12, "TIME_FILE_WRITE_FAILED", "the file of compilation times could not be written"),
    result(13, "NO_PCH_CREATE_ATTEMPTED", "no precompiled header was created"),
    result(14, "PCH_CREATE_HEAP_EXHAUSTED", "the heap for precompiled headers is exhausted"),
    result(15, "PCH_CREATE", "a precompiled header could not be created"),
    result(16, "CANCELLED", "the compilation was cancelled", "", true),
    result(17, "TIME_TRACE_FILE_WRITE_FAILED", "the compilation trace could not be written")
  ].map((info) => [info.code, info])
)

/** Describes a result. */
export const nvrtcResult = (code: number): StatusInfo =>
  results.get(code) ??
    Object.freeze({
      ...result(code, "", "a result that this version of effect-cuda does not know"),
      name: `nvrtcResult ${code}`
    })

const outputOption =
  /^(?:--gpu-architecture|-arch|--?dlto|--?dlink-time-opt|--?optix-ir|--?ltoir|--?tile-ir)(?:[=\s]|$)/

const fileOption =
  /^(?:-I|--include-path|--?pre-include|-include|--?(?:use-|create-)?pch|--?time|--?fdevice-time-trace|-optf|--options-file)/

/**
 * Whether an option chooses the architecture, or replaces CUBIN and PTX with another output. Programs must not pass
 * these; use `target` and `architecture` instead.
 */
export const isOutputOption = (option: string): boolean => outputOption.test(option.trim())

/** Whether an option makes a compilation read or write files that the request does not contain. */
export const isFileOption = (option: string): boolean => option.split(/\s/).some((word) => fileOption.test(word))
