/**
 * Schemas for failures that cross a wire: `CudaError` in the definitions of RPCs, HTTP APIs and workflows.
 *
 * A module of its own, and not part of `"effect-cuda"`, because importing `effect/Schema` takes longer than importing this whole library:
 * `import * as CudaSchema from "effect-cuda/CudaSchema"`.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import { statuses } from "./cuda/status.ts"
import * as Errors from "./CudaError.ts"
import type { CudaErrorReason } from "./CudaError.ts"

const { Boolean: boolean, Literals: literals, Number: number, String: string, TaggedStruct: tagged } = Schema
const strings = Schema.Array(string)
const orUndefined = Schema.UndefinedOr
const searched = Schema.Array(Schema.Struct({ path: string, problem: string }))

const statusFields = {
  code: number,
  name: string,
  description: string,
  advice: string,
  isSticky: boolean,
  isRetryable: boolean
}

const isStatus = (reason: CudaErrorReason): reason is Errors.StatusReason | Errors.UnknownStatus =>
  reason._tag in statuses || reason._tag === "UnknownStatus"

/** A status, also one that only the other side knows: its number, name and description arrive as an `UnknownStatus`. */
const StatusReason = Schema.Struct({ _tag: string, ...statusFields }).pipe(
  Schema.decodeTo(
    Schema.declare((u: unknown): u is Errors.StatusReason | Errors.UnknownStatus => isReason(u) && isStatus(u)),
    SchemaTransformation.transform({
      decode: ({ _tag, ...status }) =>
        _tag in statuses
          ? Errors.reasonFromStatus(status.code)
          : Errors.unknownStatus(status.code, status.name, status.description),
      encode: (reason) => ({ ...reason })
    })
  )
)

const isReason = (u: unknown): u is CudaErrorReason => typeof u === "object" && u !== null && "_tag" in u

const Diagnostic = Schema.Struct({
  severity: literals(["error", "warning", "remark"]),
  file: orUndefined(string),
  line: orUndefined(number),
  column: orUndefined(number),
  message: string,
  code: orUndefined(string),
  text: orUndefined(string)
})

type OtherTag = Exclude<CudaErrorReason["_tag"], Errors.StatusTag | "UnknownStatus">

/** The reasons that are no statuses. Does not compile without a schema for each. */
const reasons = {
  InvalidArgument: tagged("InvalidArgument", { argument: string, value: string, expected: string }),
  ResourceReleased: tagged("ResourceReleased", { resource: string }),
  ForeignResource: tagged("ForeignResource", { resource: string }),
  DeviceMismatch: tagged("DeviceMismatch", {
    resources: Schema.Tuple([string, string]),
    deviceIndices: Schema.Tuple([number, number])
  }),
  TimingDisabled: tagged("TimingDisabled", { resource: string }),
  NotRecorded: tagged("NotRecorded", { resource: string }),
  NotFinished: tagged("NotFinished", { resource: string }),
  LibraryNotFound: tagged("LibraryNotFound", { isNamed: boolean, searched }),
  KoffiNotLoaded: tagged("KoffiNotLoaded", { problem: string }),
  DriverTooOld: tagged("DriverTooOld", { found: number, required: number }),
  FunctionMissing: tagged("FunctionMissing", {
    functionName: string,
    library: Schema.optional(string),
    since: Schema.optional(string)
  }),
  CannotRecord: tagged("CannotRecord", { because: string, frame: orUndefined(string) }),
  GraphRefused: tagged("GraphRefused", { resource: string, because: string, nodeIndex: orUndefined(number) }),
  NeverFinishes: tagged("NeverFinishes", { resource: string, because: string }),
  RaceDetected: tagged("RaceDetected", { accesses: strings, fix: orUndefined(string), report: string }),
  CompilationFailed: tagged("CompilationFailed", {
    program: string,
    diagnostics: Schema.Array(Diagnostic),
    log: string
  }),
  InvalidCompileOption: tagged("InvalidCompileOption", { options: strings, log: string }),
  CompilerFailed: tagged("CompilerFailed", { ...statusFields, log: string }),
  CompilerNotFound: tagged("CompilerNotFound", { searched }),
  LibraryUnavailable: tagged("LibraryUnavailable", { library: string, searched, advice: string }),
  LibraryFailed: tagged("LibraryFailed", {
    library: orUndefined(string),
    code: number,
    name: orUndefined(string),
    description: string,
    advice: string,
    isRetryable: boolean
  }),
  TimedOut: tagged("TimedOut", { resource: string, milliseconds: number, advice: string }),
  FileUnreadable: tagged("FileUnreadable", { path: string, code: string, problem: string })
} satisfies { readonly [Tag in OtherTag]: Schema.Schema<Extract<CudaErrorReason, { readonly _tag: Tag }>> }

const Reason = Schema.Union([...Object.values(reasons), StatusReason])

const fields = Schema.Struct({
  operation: string,
  reason: Reason,
  call: Schema.optional(string),
  subject: Schema.optional(string),
  deviceIndex: Schema.optional(number),
  log: Schema.optional(string),
  memory: Schema.optional(Schema.Struct({ requested: number, free: number, total: number })),
  origin: Schema.optional(
    Schema.Struct({ operation: string, deviceIndex: number, status: Schema.Struct(statusFields), at: number })
  ),
  detail: Schema.optional(string),
  cause: Schema.optional(Schema.Defect({ includeStack: true }))
})

/**
 * `CudaError` as a schema: the error of an RPC, an HTTP endpoint, a workflow or an entity.
 *
 * **Details**
 *
 * The other side gets a `CudaError` with the same reason, message, `isSticky` and `isRetryable`, which `Effect.catchReason` handles as if
 * the failure had happened there. A status that its version of the library does not know becomes an `UnknownStatus`. A `cause` keeps
 * name, message and stack.
 *
 * **Gotchas**
 *
 * Messages name addresses, sizes, paths and source lines of the process that failed. Map failures to your own for clients that should not
 * see them.
 *
 * **Example** (A remote procedure that fails with its reason)
 *
 * ```ts
 * import * as CudaSchema from "effect-cuda/CudaSchema"
 * import * as Rpc from "effect/rpc/Rpc"
 * import * as Schema from "effect/Schema"
 *
 * export const score = Rpc.make("score", {
 *   payload: { values: Schema.Array(Schema.Number) },
 *   success: Schema.Number,
 *   error: CudaSchema.CudaError
 * })
 * ```
 *
 * @category schemas
 * @since 0.1.0
 */
export const CudaError: Schema.Codec<Errors.CudaError, typeof fields.Encoded> = fields.pipe(
  Schema.decodeTo(
    Schema.declare(Errors.isCudaError, { identifier: "CudaError" }),
    SchemaTransformation.transform({
      decode: (error) => new Errors.CudaError(error),
      encode: (error): Errors.CudaErrorFields => error
    })
  )
)
