/**
 * The part of compiling that all runtimes share: checks a request, and chooses the architecture.
 */
import * as Effect from "effect/Effect"
import { inspect } from "node:util"
import { isOutputOption } from "../../cuda/nvrtc.ts"
import type { CudaError } from "../../CudaError.ts"
import type { CompiledProgram, CompileRequest } from "../CudaRuntime.ts"
import type { ProgramOperations } from "../runtime/programs.ts"
import type { Core } from "./Core.ts"
import { refuse as refuseOperation } from "./failures.ts"

/** The operation's name in failures. */
export const compileOperation = "CudaProgram.compile"

/** The target of a compilation. 90 and `a` stand for `sm_90a`. */
export interface Goal {
  readonly target: "cubin" | "ptx"
  readonly architecture: number
  readonly suffix: string
  /** What the request specifies. The rest may change if the compiler does not support it. */
  readonly given: { readonly target: boolean; readonly architecture: boolean }
}

/**
 * A checked request. Its arrays are copies, because the caller's may have getters or change later, and NVRTC crashes on
 * anything but strings.
 */
export interface CompileTask
  extends Pick<CompileRequest, "source" | "name" | "deviceIndex" | "options" | "nameExpressions" | "cache">
{
  readonly goal: Goal
  readonly headers: ReadonlyArray<Header>
}

type Header = readonly [name: string, content: string]

export interface ProgramBackend {
  readonly compile: (task: CompileTask) => Effect.Effect<CompiledProgram, CudaError>
}

/** The architecture's name in compiler options. */
export const architectureName = (goal: Pick<Goal, "target" | "architecture" | "suffix">): string =>
  `${goal.target === "cubin" ? "sm" : "compute"}_${goal.architecture}${goal.suffix}`

export const programOperations = (core: Core): ProgramOperations => ({
  programCompile: (request) =>
    Effect.suspend(() => {
      const { cache, deviceIndex, name, source } = request
      const refused = core.refuseDevice(compileOperation, "device", deviceIndex) ?? refuseRequest(request)
      if (refused !== undefined) return refused
      const options = read("options", () => checkedTexts("options", request.options, isOption, optionExpected))
      if (Effect.isEffect(options)) return options
      const expressions = read(
        "nameExpressions",
        () => checkedTexts("nameExpressions", request.nameExpressions, isName, expressionExpected)
      )
      if (Effect.isEffect(expressions)) return expressions
      const headers = read("headers", () => checkedHeaders(request.headers))
      if (Effect.isEffect(headers)) return headers
      const { computeCapability } = core.backend.devices.all[deviceIndex]!
      const goal = read("architecture", () => goalOf(request, computeCapability))
      if (Effect.isEffect(goal)) return goal
      const nameExpressions = [...new Set(expressions)]
      return core.backend.programs.compile({
        source: withoutMark(source),
        name,
        deviceIndex,
        goal,
        options,
        headers,
        nameExpressions,
        cache
      })
    })
})

type Refusal = Effect.Effect<never, CudaError>

const refuse = (argument: string, value: unknown, expected: string): Refusal =>
  refuseOperation(compileOperation, { _tag: "InvalidArgument", argument, value: printed(value), expected })

const goalOf = (request: CompileRequest, capability: { readonly major: number; readonly minor: number }) => {
  const { architecture, target } = request
  const parsed = architecture === undefined ? numbered(capability) : parseArchitecture(architecture)
  if (parsed === undefined) return refuse("architecture", architecture, `"sm_90", "compute_90" or { major, minor }`)
  if (target === "cubin" && parsed.kind === "compute") {
    return refuse("architecture", architecture, `a real architecture for a CUBIN, for example "sm_90"`)
  }
  const goal: Goal = {
    target: target ?? (parsed.kind === "compute" ? "ptx" : "cubin"),
    architecture: parsed.architecture,
    suffix: parsed.suffix,
    given: { target: target !== undefined, architecture: architecture !== undefined }
  }
  return goal
}

const numbered = ({ major, minor }: { readonly major: number; readonly minor: number }) => ({
  kind: undefined,
  architecture: major * 10 + minor,
  suffix: ""
})

const parseArchitecture = (architecture: Exclude<CompileRequest["architecture"], undefined>) => {
  if (typeof architecture === "string") {
    const [, kind, number, suffix = ""] = /^(sm|compute)_(\d{2,3})([af]?)$/.exec(architecture) ?? []
    return kind === undefined ? undefined : { kind, architecture: Number(number), suffix }
  }
  if (typeof architecture !== "object" || architecture === null) return undefined
  const { major, minor } = architecture
  const isOne = Number.isInteger(major) && major > 0 && Number.isInteger(minor) && minor >= 0 && minor < 10
  return isOne ? numbered({ major, minor }) : undefined
}

const refuseRequest = ({ name, source, target }: CompileRequest): Refusal | undefined => {
  if (!isText(source) || source.trim() === "") return refuse("source", source, "CUDA C++ without NUL characters")
  if (!isName(name)) return refuse("name", name, "a file name without NUL characters or line breaks")
  if (target === undefined || target === "cubin" || target === "ptx") return undefined
  return refuse("target", target, `"cubin" or "ptx"`)
}

const optionExpected = "an NVRTC option; use target and architecture to choose the output"

const expressionExpected = `a C++ name, for example "add<float>"`

/** Reads an argument whose getters may throw. */
const read = <A>(argument: string, reading: () => A): A | Refusal => {
  try {
    return reading()
  } catch (error) {
    const value = `unreadable (${error instanceof Error ? error.message : "an exception was thrown"})`
    const expected = "a value that can be read"
    return refuseOperation(compileOperation, { _tag: "InvalidArgument", argument, value, expected })
  }
}

/** Copies an array of strings, or refuses the first element that is not one. Holes are read as `undefined`. */
const checkedTexts = (
  argument: string,
  given: ReadonlyArray<string>,
  accepts: (text: unknown) => text is string,
  expected: string
): ReadonlyArray<string> | Refusal => {
  if (!Array.isArray(given)) return refuse(argument, given, "an array of strings")
  const texts: Array<string> = []
  for (let index = 0; index < given.length; index++) {
    const text: unknown = given[index]
    if (!accepts(text)) return refuse(`${argument}[${index}]`, text, expected)
    texts.push(text)
  }
  return texts
}

const checkedHeaders = (given: CompileRequest["headers"]): ReadonlyArray<Header> | Refusal => {
  if (!isRecord(given)) return refuse("headers", given, "an object that maps header names to their contents")
  const headers: Array<Header> = []
  for (const [name, content] of Object.entries(given)) {
    const argument = `headers[${JSON.stringify(shortened(name))}]`
    if (!isName(name)) return refuse(argument, content, "a header name without NUL characters or line breaks")
    if (!isText(content)) return refuse(argument, content, "a string without NUL characters")
    headers.push([name, withoutMark(content)])
  }
  return headers
}

/** False for arrays, maps and promises, whose keys are not header names. True for plain objects of other realms. */
const isRecord = (value: unknown): boolean => {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === null || Object.getPrototypeOf(prototype) === null
}

const isText = (value: unknown): value is string => typeof value === "string" && !value.includes("\0")

const isName = (value: unknown): value is string => isText(value) && value.trim() !== "" && !/[\r\n]/.test(value)

const isOption = (value: unknown): value is string => isName(value) && !isOutputOption(value)

/** Removes the byte order mark that some editors add. The compiler would take it for part of the code. */
const withoutMark = (text: string): string => text.startsWith("\ufeff") ? text.slice(1) : text

const shortened = (text: string): string => text.length > 40 ? `${text.slice(0, 40)}…` : text

/** Prints any value on one short line. */
const printed = (value: unknown): string => {
  if (typeof value === "string") {
    return value.length > 40 ? `a string of ${value.length} characters` : JSON.stringify(value)
  }
  try {
    return shortened(inspect(value, { depth: 1, breakLength: Infinity, maxArrayLength: 4, maxStringLength: 40 }))
  } catch {
    return `of type ${typeof value}`
  }
}
