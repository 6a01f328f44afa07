/**
 * Checks descriptions of libraries. Their types can be bypassed, and a wrong declaration of a C function crashes the process.
 */
import type * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import type { LibraryParameter } from "../../cuda/libraryParameters.ts"
import type { CudaError } from "../../CudaError.ts"
import type { LibraryDefinition, LibraryFunction } from "../CudaRuntime.ts"
import { refuseArgument, refuseDescribed } from "./failures.ts"
import { isKind } from "./parameterKinds.ts"
import type { Refusal } from "./ranges.ts"

interface Given {
  readonly [field: PropertyKey]: unknown
}

/** Refuses what is not a description of a library. */
export const refuseDefinition = (operation: string, given: unknown, path = "definition"): Refusal => {
  if (!Predicate.isObject(given)) return refuseArgument(operation, path, given, "the description of a library")
  const { faults = [], files, functions, name, needs = [], pending = [], statuses, wheels }: Given = given
  const no = (field: string, value: unknown, expected: string) =>
    refuseArgument(operation, `${path}.${field}`, value, expected)
  if (!Predicate.isString(name) || !/\w/.test(name)) return no("name", name, "a name with a letter or a digit")
  if (typeof files !== "function") return no("files", files, "a function that returns names of files")
  if (!isListOf(wheels, Predicate.isString)) return no("wheels", wheels, "an array of names of folders")
  if (!isListOf(faults, Number.isInteger)) return no("faults", faults, "an array of codes")
  if (!isListOf(pending, Number.isInteger)) return no("pending", pending, "an array of codes")
  if (typeof statuses !== "function") {
    if (!Predicate.isObject(statuses)) return no("statuses", statuses, "names and meanings of codes, or a function")
    for (const [code, meaning] of Object.entries(statuses)) {
      if (!isMeaning(meaning)) return no(`statuses.${code}`, meaning, "the name and the meaning of the code")
    }
  }
  if (!Array.isArray(needs)) return no("needs", needs, "an array of descriptions of libraries")
  if (!Predicate.isObject(functions)) return no("functions", functions, "an object of functions")
  for (const [index, need] of needs.entries()) {
    const refused = refuseDefinition(operation, need, `${path}.needs[${index}]`)
    if (refused !== undefined) return refused
  }
  for (const [key, value] of Object.entries(functions)) {
    const refused = refuseFunction(operation, `${path}.functions.${key}`, value)
    if (refused !== undefined) return refused
  }
  return undefined
}

const isMeaning = (value: unknown): boolean =>
  Array.isArray(value) && value.length === 2 && value.every(Predicate.isString)

const isListOf = (value: unknown, isOne: (item: unknown) => boolean): boolean =>
  Array.isArray(value) && value.every(isOne)

/** The names of a library's file: for the driver's CUDA version first, then for the others. */
export const fileNames = (
  operation: string,
  definition: LibraryDefinition,
  driverMajor: number
): ReadonlyArray<string> | Effect.Effect<never, CudaError> => {
  const majors = [...new Set([driverMajor, 13, 12])]
  const found: ReadonlyArray<unknown> = majors.map((major) => definition.files(process.platform, major))
  const names = found.flat()
  if (found.every(Array.isArray) && names.every(isFileName)) return [...new Set(names)]
  return refuseArgument(operation, `files of ${definition.name}`, found, "names of files, without folders")
}

const isFileName = (name: unknown): name is string =>
  typeof name === "string" && name !== "" && !/[/\\]/.test(name) && !name.includes("\0")

const refuseFunction = (operation: string, path: string, given: unknown): Refusal => {
  if (!isFunctionLike(given)) return refuseArgument(operation, path, given, "a function made with CudaLibrary.func")
  const { enqueues, parameters, returns, thread } = given
  for (const [index, kind] of parameters.entries()) {
    if (isLibraryParameter(kind)) continue
    return refuseArgument(operation, `${path}.parameters[${index}]`, kind, "a kind of parameter")
  }
  const count = (kind: LibraryParameter["kind"]) => parameters.filter((parameter) => parameter.kind === kind).length
  if (returns !== "status" && returns !== "void" && !isScalar(returns) && !isText(returns)) {
    return refuseArgument(operation, `${path}.returns`, returns, "\"status\", \"void\", a number or a text")
  }
  const no = (value: string, expected: string) => refuseDescribed(operation, path, value, expected)
  if (parameters.length > mostParameters) {
    return no(`a function with ${parameters.length} parameters`, `one with at most ${mostParameters}`)
  }
  if (count("stream") > 1) return no("a function with several streams", "a function with one stream")
  if (count("newHandle") > 1) return no("a function that makes several handles", "a function that makes one")
  if (enqueues && count("newHandle") > 0) {
    return no("a function that makes a handle and enqueues work", "a function that does one of them")
  }
  if (!enqueues && count("stream") + count("pointer") > 0) {
    return no("a function with a stream or device memory that enqueues no work", "one that enqueues work")
  }
  if (enqueues && returns !== "status" && returns !== "void") {
    return no("a function that enqueues work and returns a value", "one that returns a status")
  }
  if (enqueues && thread === "own") {
    return no(
      "a function that enqueues work off the JS thread",
      "one on the JS thread, since the order would be unknown"
    )
  }
  return undefined
}

/** The limits of koffi, for functions and for parts of their arguments. */
const mostParameters = 64
const mostBytes = 64 * 1024 * 1024

const isFunctionLike = (value: unknown): value is LibraryFunction =>
  Predicate.isObject(value) && "parameters" in value && Array.isArray(value.parameters) && "returns" in value &&
  "thread" in value && (value.thread === "js" || value.thread === "own") && "context" in value &&
  typeof value.context === "boolean" && "enqueues" in value && typeof value.enqueues === "boolean" &&
  (!("simulate" in value) || value.simulate === undefined || typeof value.simulate === "function")

const isScalar = (kind: unknown): boolean =>
  isKind(kind) && kind.kind !== "pointer" && kind.kind !== "struct" && kind.kind !== "array"

const isText = (kind: unknown): boolean => Predicate.hasProperty(kind, "kind") && kind.kind === "text"

const isLibraryParameter = (value: unknown): value is LibraryParameter => {
  if (isKind(value)) return value.kind !== "struct" && value.kind !== "array"
  if (!Predicate.hasProperty(value, "kind")) return false
  switch (value.kind) {
    case "handle":
    case "newHandle":
      return Predicate.hasProperty(value, "of") && typeof value.of === "string" &&
        Predicate.hasProperty(value, "as") && (value.as === "pointer" || value.as === "i32")
    case "host":
      return Predicate.hasProperty(value, "access") && (value.access === "read" || value.access === "write")
    case "bytes":
      return Predicate.hasProperty(value, "size") && Number.isSafeInteger(value.size) && Number(value.size) > 0 &&
        Number(value.size) <= mostBytes
    default:
      return value.kind === "stream" || value.kind === "text"
  }
}
