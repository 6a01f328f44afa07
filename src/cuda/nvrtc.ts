/**
 * NVRTC, NVIDIA's compiler as a library (`libnvrtc`): its functions with the types koffi needs, its results, and which
 * of its options do more than change the code. No Effect here.
 *
 * @since 0.1.0
 */
import type { StatusInfo } from "./status.ts"

const program = "uintptr_t"
const memory = "void *"
const text = "str"
const texts = "const char **"
const int = "int"

/** Every function that is needed, with its parameters. All are in NVRTC 11.2. Each returns an `nvrtcResult`. */
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

/** Of NVRTC 12.8 and later: has a compilation ask a C function now and then whether to go on. */
export const setFlowCallback = { name: "nvrtcSetFlowCallback", parameters: [program, program, memory] } as const

/** The name of a function of the table. */
export type NvrtcFunctionName = keyof typeof nvrtcFunctions

/** What a parameter of a type is given as. */
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

/** The functions, bound to a library; each is called on a thread of the pool and tells the result. */
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
    result(1, "OUT_OF_MEMORY", "the compiler ran out of host memory", "Compile less at once.", true),
    result(2, "PROGRAM_CREATION_FAILURE", "the compiler could not begin"),
    result(3, "INVALID_INPUT", "an argument of the compiler's function is not valid"),
    result(4, "INVALID_PROGRAM", "the program is not valid"),
    result(nvrtcInvalidOption, "INVALID_OPTION", "an option is not valid"),
    result(nvrtcCompilation, "COMPILATION", "the source does not compile"),
    result(
      7,
      "BUILTIN_OPERATION_FAILURE",
      "a part of the compiler is missing",
      "NVRTC needs libnvrtc-builtins of its own version beside it: install the whole package, or name a complete one."
    ),
    result(8, "NO_NAME_EXPRESSIONS_AFTER_COMPILATION", "a name expression came after the compilation"),
    result(9, "NO_LOWERED_NAMES_BEFORE_COMPILATION", "a lowered name was asked for before the compilation"),
    result(10, "NAME_EXPRESSION_NOT_VALID", "a name expression is not valid"),
    result(11, "INTERNAL_ERROR", "the compiler failed"),
    result(12, "TIME_FILE_WRITE_FAILED", "the file for the compiler's times could not be written"),
    result(13, "NO_PCH_CREATE_ATTEMPTED", "no precompiled header was made"),
    result(14, "PCH_CREATE_HEAP_EXHAUSTED", "the memory for precompiled headers is used up"),
    result(15, "PCH_CREATE", "a precompiled header could not be made"),
    result(16, "CANCELLED", "the compilation was stopped", "", true),
    result(17, "TIME_TRACE_FILE_WRITE_FAILED", "the file for the compiler's trace could not be written")
  ].map((info) => [info.code, info])
)

/** What is known of a result. */
export const nvrtcResult = (code: number): StatusInfo =>
  results.get(code) ??
    Object.freeze({ ...result(code, "", "a result this version does not know"), name: `nvrtcResult ${code}` })

/** Options that say for what NVRTC compiles, or that it makes neither a CUBIN nor PTX: not a program's to give. */
export const isOutputOption = (option: string): boolean =>
  /^(?:--gpu-architecture|-arch|--?dlto|--?optix-ir|--?ltoir|--?tile-ir)(?:[=\s]|$)/.test(option)

/** Options with which the result, or what else a compilation does, hangs on files that nobody named here. */
export const isFileOption = (option: string): boolean =>
  /^(?:-I|--include-path|--?pre-include|-include|--?(?:use-|create-)?pch)/.test(option) ||
  /^(?:--?time|--?fdevice-time-trace|-optf|--options-file)/.test(option)
