/**
 * Compiling, as far as every runtime does it alike: what is asked is checked, and the architecture found.
 */
import * as Effect from "effect/Effect"
import { isOutputOption } from "../../cuda/nvrtc.ts"
import type { CudaError } from "../../CudaError.ts"
import type { CompiledProgram, CompileRequest } from "../CudaRuntime.ts"
import type { ProgramOperations } from "../runtime/programs.ts"
import type { Core } from "./Core.ts"
import { refuseArgument } from "./failures.ts"

/** The operation as programs name it. */
export const compileOperation = "CudaProgram.compile"

/** For what a program is compiled: 90 and `a` are `sm_90a`. */
export interface Goal {
  readonly target: "cubin" | "ptx"
  readonly architecture: number
  readonly suffix: string
  /** What the program said of it. What it did not say may be chosen otherwise if the compiler cannot do this. */
  readonly given: { readonly target: boolean; readonly architecture: boolean }
}

/** A request that was checked. */
export interface CompileTask extends Pick<CompileRequest, "source" | "name" | "device" | "options" | "cache"> {
  readonly goal: Goal
  readonly headers: ReadonlyArray<readonly [name: string, content: string]>
  readonly nameExpressions: ReadonlyArray<string>
}

export interface ProgramBackend {
  readonly compile: (task: CompileTask) => Effect.Effect<CompiledProgram, CudaError>
}

/** The name of an architecture as the compiler takes it. */
export const architectureName = (goal: Pick<Goal, "target" | "architecture" | "suffix">): string =>
  `${goal.target === "cubin" ? "sm" : "compute"}_${goal.architecture}${goal.suffix}`

export const programOperations = (core: Core): ProgramOperations => ({
  programCompile: (request) =>
    Effect.suspend(() => {
      const refused = core.refuseDevice(compileOperation, "device", request.device) ?? refuseRequest(request)
      if (refused !== undefined) return refused
      const goal = goalOf(request, core.backend.devices.all[request.device]!.computeCapability)
      if (Effect.isEffect(goal)) return goal
      const { cache, device, name, nameExpressions, options, source } = request
      return core.backend.programs.compile({
        source,
        name,
        device,
        goal,
        options: [...options],
        headers: Object.entries(request.headers),
        nameExpressions: [...new Set(nameExpressions)],
        cache
      })
    })
})

type Refusal = Effect.Effect<never, CudaError>

const goalOf = (request: CompileRequest, capability: { readonly major: number; readonly minor: number }) => {
  const { architecture, target } = request
  const parsed = architecture === undefined ? { ...numbered(capability) } : parseArchitecture(architecture)
  if (parsed === undefined) {
    const expected = "\"sm_90\", \"compute_90\" or { major, minor }"
    return refuseArgument(compileOperation, "architecture", printed(architecture), expected)
  }
  if (target === "cubin" && parsed.kind === "compute") {
    return refuseArgument(
      compileOperation,
      "architecture",
      architecture,
      "a real one for a CUBIN, for example \"sm_90\""
    )
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
  if (typeof architecture !== "string") {
    const { major, minor } = architecture
    const isOne = Number.isInteger(major) && major > 0 && Number.isInteger(minor) && minor >= 0 && minor < 10
    return isOne ? numbered(architecture) : undefined
  }
  const [, kind, number, suffix = ""] = /^(sm|compute)_(\d{2,3})([af]?)$/.exec(architecture) ?? []
  return kind === undefined ? undefined : { kind, architecture: Number(number), suffix }
}

const refuseRequest = (request: CompileRequest): Refusal | undefined => {
  const { headers, name, nameExpressions, options, source, target } = request
  const refuse = (argument: string, value: unknown, expected: string) =>
    refuseArgument(compileOperation, argument, value, expected)
  if (!isText(source) || source.trim() === "") {
    return refuse("source", printed(source, "text"), "CUDA C++ without NUL characters")
  }
  if (!isName(name)) return refuse("name", name, "the name of a file, without NUL characters or line breaks")
  if (target !== undefined && target !== "cubin" && target !== "ptx") {
    return refuse("target", target, "\"cubin\" or \"ptx\"")
  }
  const option = options.find((one) => !isName(one) || isOutputOption(one))
  if (option !== undefined) {
    return refuse("options", option, "options of NVRTC; what is made is told by target and architecture")
  }
  const expression = nameExpressions.find((one) => !isName(one))
  if (expression !== undefined) return refuse("nameExpressions", expression, "C++ names, for example \"add<float>\"")
  const header = Object.entries(headers).find(([file, content]) => !isName(file) || !isText(content))
  if (header === undefined) return undefined
  return refuse("headers", header[0], "names of files, each with its content, without NUL characters")
}

const isText = (value: unknown): value is string => typeof value === "string" && !value.includes("\0")

const isName = (value: unknown): value is string => isText(value) && value.trim() !== "" && !/[\r\n]/.test(value)

/** A value of any size and shape, in few words. */
const printed = (value: unknown, what = "value"): string => {
  if (typeof value === "string") return value.length > 40 ? `${what} of ${value.length} characters` : value
  if (typeof value !== "object" || value === null) return String(value)
  return JSON.stringify(value)
}
