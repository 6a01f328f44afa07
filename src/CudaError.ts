/**
 * The one failure of this library, and its reasons. Every status of the driver, every problem of loading it, and every
 * misuse that is found before the driver is asked has a reason of its own, so that pipelines can tell them apart.
 *
 * Depends on the status table in `cuda/` alone; every other floor uses it.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import * as Predicate from "effect/Predicate"
import { statuses } from "./cuda/status.ts"
import type { StatusInfo, StatusTag } from "./cuda/status.ts"

const TypeId = "~effect-cuda/CudaError"

export type {
  /**
   * What is known of a status.
   *
   * @category models
   * @since 0.1.0
   */
  StatusInfo,
  /**
   * The tag of a status.
   *
   * @category models
   * @since 0.1.0
   */
  StatusTag
}

/**
 * A status the CUDA driver returned: `_tag` is the header's name without its prefix (`CUDA_ERROR_OUT_OF_MEMORY` is
 * `OutOfMemory`), `code` its number, `name` and `description` the driver's own.
 *
 * @category reasons
 * @since 0.1.0
 */
export type StatusReason<Tag extends StatusTag = StatusTag> = {
  readonly [T in Tag]: StatusInfo & { readonly _tag: T }
}[Tag]

/**
 * A status this version of the library does not know; its number and the driver's words for it are kept.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface UnknownStatus extends StatusInfo {
  readonly _tag: "UnknownStatus"
}

/**
 * An argument was refused before the driver was asked.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface InvalidArgument {
  readonly _tag: "InvalidArgument"
  /** The argument's name. */
  readonly argument: string
  /** The value that was given, printed. */
  readonly value: string
  /** What would have been accepted. */
  readonly expected: string
}

/**
 * A resource was used after its release, or after the runtime it came from was released.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface ResourceReleased {
  readonly _tag: "ResourceReleased"
  /** What was used, for example `stream 13 of device 0`. */
  readonly resource: string
}

/**
 * A resource of one runtime was given to another one.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface ForeignResource {
  readonly _tag: "ForeignResource"
  readonly resource: string
}

/**
 * Two resources that must be on the same device are on different ones.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface DeviceMismatch {
  readonly _tag: "DeviceMismatch"
  /** The two resources, each with its device. */
  readonly resources: readonly [string, string]
  readonly devices: readonly [number, number]
}

/**
 * An elapsed time was asked of an event that does not take times.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface TimingDisabled {
  readonly _tag: "TimingDisabled"
  readonly resource: string
}

/**
 * An elapsed time was asked of an event that was never recorded.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface NotRecorded {
  readonly _tag: "NotRecorded"
  readonly resource: string
}

/**
 * An elapsed time was asked of an event whose record has not finished yet.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface NotFinished {
  readonly _tag: "NotFinished"
  readonly resource: string
}

/**
 * koffi, the package that calls C functions, could not be loaded: its native part is missing on this platform, or a bundler left it out.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface KoffiNotLoaded {
  readonly _tag: "KoffiNotLoaded"
  readonly problem: string
}

/**
 * The CUDA driver library could not be loaded.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface LibraryNotFound {
  readonly _tag: "LibraryNotFound"
  /** Whether the program named the library, with the `libraryPath` option or `EFFECT_CUDA_LIBRARY`. */
  readonly isNamed: boolean
  /** Every place that was tried, in order, and what the system's loader said of it. */
  readonly searched: ReadonlyArray<{ readonly path: string; readonly problem: string }>
}

/**
 * The installed driver is older than this library needs. Versions are CUDA's: 12040 is CUDA 12.4.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface DriverTooOld {
  readonly _tag: "DriverTooOld"
  readonly found: number
  readonly required: number
}

/**
 * The driver library lacks a function that the call needs.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface FunctionMissing {
  readonly _tag: "FunctionMissing"
  readonly functionName: string
}

/**
 * The simulated device found that a wait can never end: nothing it waits for is running or can start.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface NeverFinishes {
  readonly _tag: "NeverFinishes"
  readonly resource: string
  /** What holds it back. */
  readonly because: string
}

/**
 * What the compiler said, and of which place. Lines and columns begin at 1.
 *
 * @category models
 * @since 0.1.0
 */
export interface Diagnostic {
  readonly severity: "error" | "warning" | "remark"
  /** The program's name or that of a header; none for what concerns no place of the source. */
  readonly file: string | undefined
  readonly line: number | undefined
  readonly column: number | undefined
  /** What the compiler said, without the place. */
  readonly message: string
  /** The compiler's number of the message, for example `177-D`, where it gives one. */
  readonly code: string | undefined
  /** The line of the source. */
  readonly text: string | undefined
}

/**
 * The compiler refused a program's source.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface CompilationFailed {
  readonly _tag: "CompilationFailed"
  /** The program's name. */
  readonly program: string
  /** What the compiler said, in its order: errors, and the warnings between them. */
  readonly diagnostics: ReadonlyArray<Diagnostic>
  /** All that the compiler wrote. */
  readonly log: string
}

/**
 * The compiler refused its options.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface InvalidCompileOption {
  readonly _tag: "InvalidCompileOption"
  /** The options it was given, the library's own among them. */
  readonly options: ReadonlyArray<string>
  /** All that the compiler wrote. */
  readonly log: string
}

/**
 * The compiler (NVRTC) failed, whatever the source: `name` and `code` are its result, in its own numbers.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface CompilerFailed extends StatusInfo {
  readonly _tag: "CompilerFailed"
  /** All that the compiler wrote. */
  readonly log: string
}

/**
 * The compiler's library (NVRTC) could not be loaded.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface CompilerNotFound {
  readonly _tag: "CompilerNotFound"
  /** Every place that was tried, in order, and what is wrong with it. */
  readonly searched: ReadonlyArray<{ readonly path: string; readonly problem: string }>
}

/**
 * A file could not be read.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface FileUnreadable {
  readonly _tag: "FileUnreadable"
  readonly path: string
  /** The system's code, for example `ENOENT`. */
  readonly code: string
  readonly problem: string
}

/**
 * Why a call failed.
 *
 * @category reasons
 * @since 0.1.0
 */
export type CudaErrorReason =
  | StatusReason
  | UnknownStatus
  | InvalidArgument
  | ResourceReleased
  | ForeignResource
  | DeviceMismatch
  | TimingDisabled
  | NotRecorded
  | NotFinished
  | LibraryNotFound
  | KoffiNotLoaded
  | DriverTooOld
  | FunctionMissing
  | NeverFinishes
  | CompilationFailed
  | InvalidCompileOption
  | CompilerFailed
  | CompilerNotFound
  | FileUnreadable

/**
 * The first failure that ended the contexts of the process, kept to explain the ones that follow from it.
 *
 * @category models
 * @since 0.1.0
 */
export interface FaultOrigin {
  /** The operation that first met the fault. Work enqueued before it may be what failed. */
  readonly operation: string
  readonly device: number
  readonly status: StatusInfo
  /** When it was met, in milliseconds since 1970. */
  readonly at: number
}

/**
 * What a failure is made of.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaErrorFields {
  /** The operation as a program names it, for example `CudaEvent.record`. */
  readonly operation: string
  readonly reason: CudaErrorReason
  /** The function of the driver that answered, for example `cuEventRecord`. */
  readonly call?: string | undefined
  /** The handle or the arguments concerned, printed. */
  readonly subject?: string | undefined
  /** The index of the device concerned. */
  readonly device?: number | undefined
  /** What the driver's compiler said of code that it refused, line by line. */
  readonly log?: string | undefined
  /** How much memory was requested and how much there is, for an allocation that failed with `OutOfMemory`. */
  readonly memory?: MemoryShortage | undefined
  /** The failure that ended the contexts of the process, when this one follows from it. */
  readonly origin?: FaultOrigin | undefined
  /**
   * What is known beyond the status. Only simulated devices know more than a driver says: which kernel ended the contexts and
   * how (what it threw, or the argument and the bytes that it reached for), or which kernels and variables there are.
   */
  readonly detail?: string | undefined
  /** What the kernel of a simulated device threw, when this failure follows from it: its stack shows where. */
  readonly cause?: unknown
}

/**
 * How much memory an allocation requested, and how much its device had at that moment, in bytes.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryShortage {
  readonly requested: number
  readonly free: number
  readonly total: number
}

/**
 * A failed operation: what was called, why it failed, and what it was called with.
 *
 * **Details**
 *
 * Handle single reasons with `Effect.catchReason("CudaError", "OutOfMemory", …)`. `message`, and with it `String`, logs
 * and causes, says in a sentence what failed, with what, and what to do about it.
 *
 * **Example** (Recovering from a full device)
 *
 * ```ts
 * import { CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const buffer = CudaMemory.allocate(1 << 30).pipe(
 *   Effect.catchReason("CudaError", "OutOfMemory", () => CudaMemory.allocate(1 << 20))
 * )
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class CudaError extends Data.TaggedError("CudaError")<CudaErrorFields & { readonly message: string }> {
  /** Marks failures of this library. */
  get [TypeId](): typeof TypeId {
    return TypeId
  }

  constructor(fields: CudaErrorFields) {
    super({ ...fields, message: messageOf(fields) })
  }

  /** True when the contexts of the process are lost: no later call on any device can succeed in it. */
  get isSticky(): boolean {
    return "isSticky" in this.reason && this.reason.isSticky
  }

  /** True when the same call can succeed later. An allocation that is larger than its device never can. */
  get isRetryable(): boolean {
    if (this.memory !== undefined && this.memory.requested > this.memory.total) return false
    return "isRetryable" in this.reason && this.reason.isRetryable
  }
}

/**
 * True for every `CudaError`, whichever copy of the library made it.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaError = (u: unknown): u is CudaError => Predicate.hasProperty(u, TypeId)

/**
 * The reason of a status code; a code that no table row has keeps its number as an `UnknownStatus`.
 *
 * @category reasons
 * @since 0.1.0
 */
export const reasonFromStatus = (code: number): StatusReason | UnknownStatus => byCode.get(code) ?? unknownStatus(code)

/**
 * The reason for a code that is not in the table, with the driver's words for it where it has any.
 *
 * @category reasons
 * @since 0.1.0
 */
export const unknownStatus = (code: number, name?: string, description?: string): UnknownStatus =>
  Object.freeze({
    _tag: "UnknownStatus",
    code,
    name: name ?? `CUresult ${code}`,
    description: description ?? "a status this version does not know",
    advice: "",
    isSticky: false,
    isRetryable: false
  })

const tagged = <Tag extends StatusTag>(tag: Tag): StatusReason<Tag> => Object.freeze({ _tag: tag, ...statuses[tag] })

const byCode: ReadonlyMap<number, StatusReason> = new Map(
  (Object.keys(statuses) as ReadonlyArray<StatusTag>).map((tag) => [statuses[tag].code, tagged(tag)])
)

/**
 * Makes the failure of an operation that refuses an argument, before the driver is asked.
 *
 * **Details**
 *
 * Any value can be printed: a string is quoted, typed arrays and buffers are their number of bytes, long arrays and texts are
 * cut. Never throws, whatever the value does when it is looked at.
 *
 * **Example** (Refusing a count)
 *
 * ```ts
 * import { CudaError } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const checked = (count: number) =>
 *   Number.isInteger(count)
 *     ? Effect.succeed(count)
 *     : Effect.fail(CudaError.invalidArgument("Scores.sum", "count", count, "a whole number"))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const invalidArgument = (operation: string, argument: string, value: unknown, expected: string): CudaError =>
  new CudaError({ operation, reason: { _tag: "InvalidArgument", argument, value: printValue(value), expected } })

/** How many characters and items of a value are printed, and how deep. */
const mostCharacters = 200
const mostItems = 16
const mostLevels = 2

const printValue = (value: unknown): string => {
  const text = printAt(value, mostLevels).replace(/\s+/g, " ")
  return text.length > mostCharacters ? `${text.slice(0, mostCharacters)}…` : text
}

/** Looking at a value may run code of others: getters, proxies, `toString`. */
const printAt = (value: unknown, levels: number): string => {
  try {
    if (typeof value === "string") return JSON.stringify(value)
    if (typeof value === "bigint") return `${value}n`
    if (typeof value === "function") return value.name === "" ? "a function" : `function ${value.name}`
    return typeof value === "object" && value !== null ? printObject(value, levels) : String(value)
  } catch {
    return typeof value === "object" ? "an object" : `a ${typeof value}`
  }
}

const printObject = (value: object, levels: number): string => {
  if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer || value instanceof SharedArrayBuffer) {
    return `${value.byteLength} bytes`
  }
  if (Array.isArray(value)) {
    return levels === 0 ? "[…]" : `[${listItems(value, (item) => printAt(item, levels - 1))}]`
  }
  const prototype: unknown = Object.getPrototypeOf(value)
  if (prototype !== null && prototype !== Object.prototype) {
    const text = String(value)
    return text.startsWith("[object ") ? `an instance of ${value.constructor.name}` : text
  }
  const fields = Object.entries(value)
  if (fields.length === 0) return "{}"
  return levels === 0 ? "{…}" : `{ ${listItems(fields, ([key, field]) => `${key}: ${printAt(field, levels - 1)}`)} }`
}

const listItems = <Item>(items: ReadonlyArray<Item>, print: (item: Item) => string): string =>
  [...items.slice(0, mostItems).map(print), ...(items.length > mostItems ? ["…"] : [])].join(", ")

/**
 * Prints a CUDA version as people write it: 12040 is `12.4`.
 *
 * @category formatting
 * @since 0.1.0
 */
export const formatVersion = (cuda: number): string => `${Math.floor(cuda / 1000)}.${Math.floor((cuda % 1000) / 10)}`

/**
 * Formats a number of bytes for people: 1610612736 is `1.5 GiB`.
 *
 * @category formatting
 * @since 0.1.0
 */
export const formatBytes = (bytes: number): string => {
  const unit = Math.min(byteUnits.length - 1, Math.floor(Math.log2(Math.max(1, Math.abs(bytes))) / 10))
  if (unit === 0) return `${bytes} byte${bytes === 1 ? "" : "s"}`
  return `${Number((bytes / 1024 ** unit).toFixed(2))} ${byteUnits[unit]}`
}

const byteUnits = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"] as const

const messageOf = ({ call, detail, log, memory, operation, origin, reason, subject }: CudaErrorFields): string =>
  `${operation}${subject === undefined ? "" : ` (${subject})`}: ${describe(reason, call)}${explainMemory(memory)}${
    detail === undefined ? "" : ` ${detail}`
  }${log === undefined ? "" : `\n${log}`}${explainOrigin(origin)}`

const explainMemory = (memory: MemoryShortage | undefined): string => {
  if (memory === undefined) return ""
  const { free, requested, total } = memory
  const size = `${formatBytes(requested)} ${requested === 1 ? "was" : "were"} requested`
  return requested > total
    ? ` ${size}, more than the ${formatBytes(total)} of the device.`
    : ` ${size}; ${formatBytes(free)} of ${formatBytes(total)} are free.`
}

const describeKoffi = (reason: KoffiNotLoaded): string =>
  `koffi, the package that calls the CUDA driver, could not be loaded: ${reason.problem}. Install the dependencies of effect-cuda ` +
  "where the program runs, and keep koffi out of bundles (mark it as external)."

const describeSearch = (reason: LibraryNotFound): string =>
  "the CUDA driver library could not be loaded; tried " +
  reason.searched.map((place) => `${place.path} (${place.problem})`).join(", ") +
  ". Install the NVIDIA driver, name its library with the libraryPath option or EFFECT_CUDA_LIBRARY, or use the simulated runtime."

const describeCompilerSearch = (reason: CompilerNotFound): string =>
  "NVRTC, which compiles CUDA C++, could not be loaded; tried " +
  describePlaces(reason.searched) +
  ". Install it (it is part of the CUDA toolkit and of the Python package nvidia-cuda-nvrtc), or name its library with " +
  "the nvrtcPath option or EFFECT_CUDA_NVRTC."

/** Places with the same problem share its words. */
const describePlaces = (searched: CompilerNotFound["searched"]): string => {
  const places = new Map<string, Array<string>>()
  for (const { path, problem } of searched) places.set(problem, [...places.get(problem) ?? [], path])
  return [...places].map(([problem, paths]) => `${paths.join(", ")} (${problem})`).join("; ")
}

/** How many errors of a compilation a message shows. */
const shownErrors = 3

const describeCompilation = ({ diagnostics, log, program }: CompilationFailed): string => {
  const errors = diagnostics.filter((diagnostic) => diagnostic.severity === "error")
  if (errors.length === 0) return `${program} does not compile: ${log.trim() || "the compiler did not say why"}`
  const more = errors.length - shownErrors
  return [
    `${errors.length} error${errors.length === 1 ? "" : "s"} in ${program}.`,
    ...errors.slice(0, shownErrors).flatMap(describeDiagnostic),
    ...(more > 0 ? [`${more} more in the log.`] : [])
  ].join("\n")
}

const describeDiagnostic = ({ column, file, line, message, text }: Diagnostic): ReadonlyArray<string> => {
  const place = line === undefined ? "" : column === undefined ? `(${line})` : `(${line},${column})`
  const said = file === undefined ? message : `${file}${place}: ${message}`
  return text === undefined ? [said] : [said, `    ${text.trim()}`]
}

const describeStatus = (reason: StatusReason | UnknownStatus | CompilerFailed, call: string | undefined): string =>
  `${call === undefined ? "failed with" : `${call} returned`} ${reason.name} (${reason.code}): ${reason.description}.` +
  (reason.advice === "" ? "" : ` ${reason.advice}`)

const describe = (reason: CudaErrorReason, call: string | undefined): string => {
  switch (reason._tag) {
    case "InvalidArgument":
      return `${reason.argument} is ${reason.value}; expected ${reason.expected}.`
    case "ResourceReleased":
      return `${reason.resource} was released before this call. Keep its scope open while it is in use.`
    case "ForeignResource":
      return `${reason.resource} belongs to another runtime. Use it with the runtime that made it.`
    case "DeviceMismatch":
      return `${reason.resources[0]} and ${reason.resources[1]} are on different devices.`
    case "TimingDisabled":
      return `${reason.resource} does not take times. Make it with { timing: true }.`
    case "NotRecorded":
      return `${reason.resource} was never recorded. Record it on a stream first.`
    case "NotFinished":
      return `${reason.resource} has not finished yet. Synchronize with it first.`
    case "KoffiNotLoaded":
      return describeKoffi(reason)
    case "LibraryNotFound":
      return describeSearch(reason)
    case "DriverTooOld":
      return `the driver supports CUDA ${formatVersion(reason.found)}; at least ${
        formatVersion(reason.required)
      } is needed. Update the NVIDIA driver.`
    case "FunctionMissing":
      return `the driver's library has no function ${reason.functionName}. Update the NVIDIA driver.`
    case "NeverFinishes":
      return `${reason.resource} can never finish: ${reason.because}.`
    case "CompilationFailed":
      return describeCompilation(reason)
    case "InvalidCompileOption":
      return `the compiler refuses its options ${JSON.stringify(reason.options)}: ${reason.log.trim()}`
    case "CompilerFailed":
      return describeStatus(reason, call) + (reason.log.trim() === "" ? "" : ` It says: ${reason.log.trim()}`)
    case "CompilerNotFound":
      return describeCompilerSearch(reason)
    case "FileUnreadable":
      return `${reason.path} cannot be read: ${reason.problem}.`
    default:
      return describeStatus(reason, call)
  }
}

const explainOrigin = (origin: FaultOrigin | undefined): string => {
  if (origin === undefined) return ""
  return ` A fault ended the contexts of this process earlier: ${origin.operation} met ${origin.status.name} on device ` +
    `${origin.device} at ${new Date(origin.at).toISOString()}.`
}
