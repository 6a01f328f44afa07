/**
 * `CudaError`, the only error type of this library, and its reasons. Every driver status, every problem with loading
 * the driver, and every misuse detected before a driver call has its own reason, so that pipelines can tell them apart.
 *
 * Depends only on the status table in `cuda/`. Every other floor uses it.
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
   * The properties of a status.
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
 * A status returned by the CUDA driver. `_tag` is the name in the header without its prefix (`CUDA_ERROR_OUT_OF_MEMORY`
 * is `OutOfMemory`), `code` is the number, and `name` and `description` are the driver's.
 *
 * @category reasons
 * @since 0.1.0
 */
export type StatusReason<Tag extends StatusTag = StatusTag> = {
  readonly [T in Tag]: StatusInfo & { readonly _tag: T }
}[Tag]

/**
 * A status unknown to this version of the library, with its number, and its name and description if the driver has
 * them.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface UnknownStatus extends StatusInfo {
  readonly _tag: "UnknownStatus"
}

/**
 * An argument is invalid. No driver call was made.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface InvalidArgument {
  readonly _tag: "InvalidArgument"
  /** The name of the argument. */
  readonly argument: string
  /** The value, printed or described. */
  readonly value: string
  /** The values that are accepted, in words. */
  readonly expected: string
}

/**
 * A resource was used after its release, or after the release of its runtime.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface ResourceReleased {
  readonly _tag: "ResourceReleased"
  /** The resource, for example `stream 13 of device 0`. */
  readonly resource: string
}

/**
 * A resource of one runtime was used with another.
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
  /** The two resources. */
  readonly resources: readonly [string, string]
  readonly deviceIndices: readonly [number, number]
  /** What to do about it, if there is a way to use them together. */
  readonly advice?: string | undefined
}

/**
 * An elapsed time was requested of an event without timing.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface TimingDisabled {
  readonly _tag: "TimingDisabled"
  readonly resource: string
}

/**
 * An elapsed time was requested of an event that was never recorded.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface NotRecorded {
  readonly _tag: "NotRecorded"
  readonly resource: string
}

/**
 * An elapsed time was requested of an event whose record has not finished yet.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface NotFinished {
  readonly _tag: "NotFinished"
  readonly resource: string
}

/**
 * koffi, the package that calls C functions, could not be loaded: its native binary is missing on this platform, or a
 * bundler left it out.
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
  /** Whether the program set the path, with the `libraryPath` option or `EFFECT_CUDA_LIBRARY`. */
  readonly isNamed: boolean
  /** Every path tried, in order, and the system loader's error message. */
  readonly searched: ReadonlyArray<{ readonly path: string; readonly problem: string }>
}

/**
 * The installed driver is older than this library requires. Versions are those of CUDA: 12040 is CUDA 12.4.
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
 * The driver library, or another library, lacks a function that the operation requires.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface FunctionMissing {
  readonly _tag: "FunctionMissing"
  readonly functionName: string
  /** The library, for example `cuBLAS`; undefined for the driver. */
  readonly library?: string | undefined
  /** The version of the library that introduced the function, if it is known. */
  readonly since?: string | undefined
}

/**
 * The operation cannot be part of a recorded graph, or crosses the border of a recording.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface CannotRecord {
  readonly _tag: "CannotRecord"
  /** Why, and what to do instead. */
  readonly because: string
  /** The innermost span or named function around the operation, and where it is in the source. */
  readonly frame: string | undefined
}

/**
 * The driver cannot run a graph, or cannot update one to another.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface GraphRefused {
  readonly _tag: "GraphRefused"
  /** The graph. */
  readonly resource: string
  /** What the driver says about it. */
  readonly because: string
  /** The index of the node concerned, if the driver names one. */
  readonly nodeIndex: number | undefined
}

/**
 * A use of memory without an order to another one, found by `CheckedRuntime`. Nothing was enqueued.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface RaceDetected {
  readonly _tag: "RaceDetected"
  /** The two uses in words, the earlier one first; a single one for use of released memory. */
  readonly accesses: ReadonlyArray<string>
  /** The call that would order them. */
  readonly fix: string | undefined
  /** The whole report as text. */
  readonly report: string
}

/**
 * The simulated device detected that a wait can never end, because nothing it waits for is running or can start.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface NeverFinishes {
  readonly _tag: "NeverFinishes"
  readonly resource: string
  /** What blocks it. */
  readonly because: string
}

/**
 * A message of the compiler, with its source location. Lines and columns start at 1.
 *
 * @category models
 * @since 0.1.0
 */
export interface Diagnostic {
  readonly severity: "error" | "warning" | "remark"
  /** The name of the program or of a header; undefined if the message has no source location. */
  readonly file: string | undefined
  readonly line: number | undefined
  readonly column: number | undefined
  /** The message, without the source location. */
  readonly message: string
  /** The compiler's message number, for example `177-D`, if it has one. */
  readonly code: string | undefined
  /** The source line. */
  readonly text: string | undefined
}

/**
 * The source of a program does not compile.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface CompilationFailed {
  readonly _tag: "CompilationFailed"
  /** The name of the program. */
  readonly program: string
  /** The errors and warnings, in the compiler's order. */
  readonly diagnostics: ReadonlyArray<Diagnostic>
  /** The complete log of the compiler. */
  readonly log: string
}

/**
 * The compiler does not accept its options.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface InvalidCompileOption {
  readonly _tag: "InvalidCompileOption"
  /** All options, including those added by the library. */
  readonly options: ReadonlyArray<string>
  /** The complete log of the compiler. */
  readonly log: string
}

/**
 * The compiler (NVRTC) failed for a reason other than the source. `name` and `code` are NVRTC's.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface CompilerFailed extends StatusInfo {
  readonly _tag: "CompilerFailed"
  /** The complete log of the compiler. */
  readonly log: string
}

/**
 * The compiler library (NVRTC) could not be loaded.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface CompilerNotFound {
  readonly _tag: "CompilerNotFound"
  /** Every location tried, in order, and what is wrong with it. */
  readonly searched: ReadonlyArray<{ readonly path: string; readonly problem: string }>
}

/**
 * An optional library, such as NVML, could not be loaded.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface LibraryUnavailable {
  readonly _tag: "LibraryUnavailable"
  /** The library, for example `NVML`. */
  readonly library: string
  /** Every location tried, in order, and what is wrong with it. */
  readonly searched: ReadonlyArray<{ readonly path: string; readonly problem: string }>
  /** Where the library comes from, and how to set its path. */
  readonly advice: string
}

/**
 * A call of a library other than the driver failed. `code` and `name` are the library's, for example `NVML_ERROR_NOT_SUPPORTED`.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface LibraryFailed {
  readonly _tag: "LibraryFailed"
  /** The library, for example `NVML`; undefined for calls of `CudaMemory.enqueue`. */
  readonly library: string | undefined
  readonly code: number
  /** The name of the code; undefined if the program has given it none. */
  readonly name: string | undefined
  /** What the code means, and what to do. Empty if that is not known. */
  readonly description: string
  readonly advice: string
  readonly isRetryable: boolean
}

/**
 * Something did not happen in the time that the program gave it, such as a rank that did not join its communicator.
 *
 * @category reasons
 * @since 0.1.0
 */
export interface TimedOut {
  readonly _tag: "TimedOut"
  /** What was waited for, in words. */
  readonly resource: string
  readonly milliseconds: number
  /** What to do about it. */
  readonly advice: string
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
  /** The system's error code, for example `ENOENT`. */
  readonly code: string
  readonly problem: string
}

/**
 * The reason of a failure.
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
  | CannotRecord
  | GraphRefused
  | NeverFinishes
  | RaceDetected
  | CompilationFailed
  | InvalidCompileOption
  | CompilerFailed
  | CompilerNotFound
  | LibraryUnavailable
  | LibraryFailed
  | FileUnreadable
  | TimedOut

/**
 * The first failure after which the contexts of the process were lost. It explains the failures that follow.
 *
 * @category models
 * @since 0.1.0
 */
export interface FaultOrigin {
  /** The operation that first reported the fault. The cause may be work enqueued earlier. */
  readonly operation: string
  readonly deviceIndex: number
  readonly status: StatusInfo
  /** When it was reported, in milliseconds since the Unix epoch. */
  readonly at: number
}

/**
 * The fields of a failure.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaErrorFields {
  /** The operation, for example `CudaEvent.record`. */
  readonly operation: string
  readonly reason: CudaErrorReason
  /** The driver call that returned the status, for example `cuEventRecord`. */
  readonly call?: string | undefined
  /** The handle or the arguments, printed. */
  readonly subject?: string | undefined
  /** The device index. */
  readonly deviceIndex?: number | undefined
  /** The log of the driver's JIT compiler, for code that it could not compile. */
  readonly log?: string | undefined
  /** The requested, free and total memory, for an allocation that failed with `OutOfMemory`. */
  readonly memory?: MemoryShortage | undefined
  /** The failure that caused this one, if the contexts of the process were already lost. */
  readonly origin?: FaultOrigin | undefined
  /**
   * Additional information. From simulated devices: the kernel behind a fault and its cause (the exception, or the argument and the bytes it
   * accessed), or the existing kernels and variables. From `DebugRuntime`: the line of the operation that failed.
   */
  readonly detail?: string | undefined
  /** The exception in a kernel of a simulated device that caused this failure. Its stack shows where it was thrown. */
  readonly cause?: unknown
}

/**
 * The requested size of an allocation, and the free and total memory of its device at that moment, in bytes.
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
 * The failure of an operation, with its reason and its subject.
 *
 * **Details**
 *
 * Handle individual reasons with `Effect.catchReason("CudaError", "OutOfMemory", …)`. The `message`, which `String`,
 * logs and causes show as well, states what failed, why, and what to do about it.
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
  /** Identifies failures of this library. */
  get [TypeId](): typeof TypeId {
    return TypeId
  }

  constructor(fields: CudaErrorFields) {
    super({ ...fields, message: messageOf(fields) })
  }

  /** True if the contexts of the process are lost: no later call on any device can succeed. */
  get isSticky(): boolean {
    return "isSticky" in this.reason && this.reason.isSticky
  }

  /** True if the same call can succeed later. An allocation larger than its device's memory never can. */
  get isRetryable(): boolean {
    if (this.memory !== undefined && this.memory.requested > this.memory.total) return false
    return "isRetryable" in this.reason && this.reason.isRetryable
  }
}

/**
 * Returns `true` if a value is a `CudaError`, including one from another copy of the library.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCudaError = (u: unknown): u is CudaError => Predicate.hasProperty(u, TypeId)

/**
 * Returns the fields of a failure as annotations for logs: `cuda.operation`, `cuda.call`, `cuda.subject` (the stream or other resource, with
 * its name), `cuda.device`, and `error.type` (the tag of the reason, under OpenTelemetry's name). The library annotates its own warnings
 * with them.
 *
 * **Example** (Logging a failure that is handled)
 *
 * ```ts
 * import { CudaError, CudaMemory } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const buffer = CudaMemory.allocate(1 << 30).pipe(
 *   Effect.tapError((error) => Effect.logWarning(error.message).pipe(Effect.annotateLogs(CudaError.annotations(error))))
 * )
 * ```
 *
 * @category logging
 * @since 0.1.0
 */
export const annotations = ({ call, deviceIndex, operation, reason, subject }: CudaError): Record<string, unknown> => ({
  "cuda.operation": operation,
  "error.type": reason._tag,
  ...(call === undefined ? undefined : { "cuda.call": call }),
  ...(subject === undefined ? undefined : { "cuda.subject": subject }),
  ...(deviceIndex === undefined ? undefined : { "cuda.device": deviceIndex })
})

/**
 * Returns the reason for a status code: an `UnknownStatus` with its number if the table does not contain the code.
 *
 * **Example** (The meaning of a number)
 *
 * ```ts
 * import { CudaError } from "effect-cuda"
 *
 * const reason = CudaError.reasonFromStatus(700) // IllegalAddress
 * const isLost = reason.isSticky // true
 * ```
 *
 * @category reasons
 * @since 0.1.0
 */
export const reasonFromStatus = (code: number): StatusReason | UnknownStatus => byCode.get(code) ?? unknownStatus(code)

/**
 * Makes the reason for a code that the table does not contain, with the driver's name and description if there are any.
 *
 * **Example** (A status that this version does not know)
 *
 * ```ts
 * import { CudaError } from "effect-cuda"
 *
 * const reason = CudaError.unknownStatus(12345, "CUDA_ERROR_NEW", "something new")
 * ```
 *
 * @category reasons
 * @since 0.1.0
 */
export const unknownStatus = (code: number, name?: string, description?: string): UnknownStatus =>
  Object.freeze({
    _tag: "UnknownStatus",
    code,
    name: name ?? `CUresult ${code}`,
    description: description ?? "unknown to this version of effect-cuda",
    advice: "",
    isSticky: false,
    isRetryable: false
  })

const tagged = <Tag extends StatusTag>(tag: Tag): StatusReason<Tag> => Object.freeze({ _tag: tag, ...statuses[tag] })

const byCode: ReadonlyMap<number, StatusReason> = new Map(
  (Object.keys(statuses) as ReadonlyArray<StatusTag>).map((tag) => [statuses[tag].code, tagged(tag)])
)

/**
 * Makes the failure of an operation with an invalid argument.
 *
 * **Details**
 *
 * Prints any value: strings are quoted, typed arrays and buffers are shown as their size in bytes, and long arrays and
 * texts are truncated. Never throws, not even if a getter or `toString` of the value does.
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
 *     : Effect.fail(CudaError.invalidArgument("Scores.sum", "count", count, "an integer"))
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const invalidArgument = (operation: string, argument: string, value: unknown, expected: string): CudaError =>
  new CudaError({ operation, reason: { _tag: "InvalidArgument", argument, value: printValue(value), expected } })

/** Limits on the characters, items and nesting levels printed of a value. */
const mostCharacters = 200
const mostItems = 16
const mostLevels = 2

const printValue = (value: unknown): string => {
  const text = printAt(value, mostLevels).replace(/\s+/g, " ")
  return text.length > mostCharacters ? `${text.slice(0, mostCharacters)}…` : text
}

/** Inspecting a value may run user code: getters, proxies, `toString`. */
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
    return `${value.byteLength} byte${value.byteLength === 1 ? "" : "s"}`
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
 * Formats a CUDA version: 12040 is `12.4`.
 *
 * **Example** (The version of a driver)
 *
 * ```ts
 * import { CudaError } from "effect-cuda"
 *
 * const version = CudaError.formatVersion(13000) // "13.0"
 * ```
 *
 * @category formatting
 * @since 0.1.0
 */
export const formatVersion = (cuda: number): string => `${Math.floor(cuda / 1000)}.${Math.floor((cuda % 1000) / 10)}`

/**
 * Formats a number of bytes: 1610612736 is `1.5 GiB`.
 *
 * **Example** (A size in a message)
 *
 * ```ts
 * import { CudaError } from "effect-cuda"
 *
 * const size = CudaError.formatBytes(4096)
 * ```
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
    : ` ${size}; ${formatBytes(free)} of ${formatBytes(total)} ${free === 1 ? "is" : "are"} free.`
}

const describeKoffi = (reason: KoffiNotLoaded): string =>
  `koffi, the package that calls the CUDA driver, could not be loaded: ${reason.problem}. Install the dependencies of effect-cuda ` +
  "where the program runs, and keep koffi out of bundles (mark it as external)."

const describeSearch = (reason: LibraryNotFound): string =>
  "the CUDA driver library could not be loaded; tried " +
  reason.searched.map((place) => `${place.path} (${place.problem})`).join(", ") +
  ". Install the NVIDIA driver, set the path of its library with the libraryPath option or EFFECT_CUDA_LIBRARY, or use " +
  "the simulated runtime."

const describeCompilerSearch = (reason: CompilerNotFound): string =>
  "NVRTC, which compiles CUDA C++, could not be loaded; tried " +
  describePlaces(reason.searched) +
  ". Install it (it is part of the CUDA toolkit and of the Python package nvidia-cuda-nvrtc), or set its path with " +
  "the nvrtcPath option or EFFECT_CUDA_NVRTC."

/** Groups places with the same problem. */
const describePlaces = (searched: CompilerNotFound["searched"]): string => {
  const places = new Map<string, Array<string>>()
  for (const { path, problem } of searched) places.set(problem, [...places.get(problem) ?? [], path])
  return [...places].map(([problem, paths]) => `${paths.join(", ")} (${problem})`).join("; ")
}

/** Maximum number of compilation errors in a message. */
const shownErrors = 3

const describeCompilation = ({ diagnostics, log, program }: CompilationFailed): string => {
  const errors = diagnostics.filter((diagnostic) => diagnostic.severity === "error")
  if (errors.length === 0) return `${program} does not compile: ${log.trim() || "the compiler gave no reason"}`
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

const describeStatus = (
  reason: StatusReason | UnknownStatus | CompilerFailed,
  call: string | undefined
): string =>
  `${call === undefined ? "failed with" : `${call} returned`} ${reason.name} (${reason.code}): ${reason.description}.` +
  (reason.advice === "" ? "" : ` ${reason.advice}`)

const describeLibrary = ({ advice, code, description, name }: LibraryFailed, call = "the call"): string =>
  `${call} returned ${name === undefined ? `status ${code}` : `${name} (${code})`}` +
  (description === "" ? "." : `: ${description}.`) + (advice === "" ? "" : ` ${advice}`)

const describeMissing = ({ functionName, library, since }: FunctionMissing): string => {
  if (library === undefined) return `the driver library has no function ${functionName}. Update the NVIDIA driver.`
  const needed = since === undefined ? "a newer version of it" : `${library} ${since} or later`
  return `the ${library} that was loaded has no function ${functionName}. Install ${needed}.`
}

const describe = (reason: CudaErrorReason, call: string | undefined): string => {
  switch (reason._tag) {
    case "InvalidArgument":
      return `${reason.argument} is ${reason.value}; expected ${reason.expected}.`
    case "ResourceReleased":
      return `${reason.resource} was released. Keep its scope open while it is in use.`
    case "ForeignResource":
      return `${reason.resource} belongs to another runtime. Use it with the runtime that created it.`
    case "DeviceMismatch":
      return `${reason.resources[0]} and ${reason.resources[1]} are on different devices.` +
        (reason.advice === undefined ? "" : ` ${reason.advice}`)
    case "TimingDisabled":
      return `${reason.resource} does not record times. Create it with { timing: true }.`
    case "NotRecorded":
      return `${reason.resource} was never recorded. Record it on a stream first.`
    case "NotFinished":
      return `${reason.resource} has not finished yet. Wait for it with CudaEvent.synchronize first.`
    case "KoffiNotLoaded":
      return describeKoffi(reason)
    case "LibraryNotFound":
      return describeSearch(reason)
    case "DriverTooOld":
      return `the driver supports CUDA ${formatVersion(reason.found)}; at least ${
        formatVersion(reason.required)
      } is required. Update the NVIDIA driver.`
    case "FunctionMissing":
      return describeMissing(reason)
    case "CannotRecord":
      return `this cannot be recorded${reason.frame === undefined ? "" : `, in ${reason.frame}`}: ${reason.because}.`
    case "GraphRefused":
      return `the driver refused the ${reason.resource}${
        reason.nodeIndex === undefined ? "" : ` at node ${reason.nodeIndex}`
      }: ${reason.because}.`
    case "NeverFinishes":
      return `${reason.resource} can never finish: ${reason.because}.`
    case "RaceDetected":
      return reason.report
    case "CompilationFailed":
      return describeCompilation(reason)
    case "InvalidCompileOption":
      return `the compiler does not accept the options ${JSON.stringify(reason.options)}: ${reason.log.trim()}`
    case "CompilerFailed":
      return describeStatus(reason, call) + (reason.log.trim() === "" ? "" : ` Its log: ${reason.log.trim()}`)
    case "CompilerNotFound":
      return describeCompilerSearch(reason)
    case "LibraryUnavailable":
      return `${reason.library} could not be loaded; tried ${describePlaces(reason.searched)}. ${reason.advice}`
    case "LibraryFailed":
      return describeLibrary(reason, call)
    case "TimedOut":
      return `${reason.resource} did not come within ${reason.milliseconds} ms. ${reason.advice}`
    case "FileUnreadable":
      return `${reason.path} cannot be read: ${reason.problem}.`
    default:
      return describeStatus(reason, call)
  }
}

const explainOrigin = (origin: FaultOrigin | undefined): string => {
  if (origin === undefined) return ""
  return ` The contexts of this process were lost earlier: ${origin.operation} failed with ${origin.status.name} on ` +
    `device ${origin.deviceIndex} at ${new Date(origin.at).toISOString()}.`
}
