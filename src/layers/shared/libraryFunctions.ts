/**
 * Functions of libraries: what a call passes to C, after every argument was checked.
 */
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import type { ForeignFunction, ForeignLibrary } from "../../cuda/foreignLibrary.ts"
import type { HandleKind, HandleType, HostKind, LibraryParameter, NewHandleKind } from "../../cuda/libraryParameters.ts"
import { scalarReaders, scalarWords, scalarWriters } from "../../cuda/parameters.ts"
import type { ElementType, PointerKind, ScalarKind, ScalarName, Writer } from "../../cuda/parameters.ts"
import { CudaError } from "../../CudaError.ts"
import type { LibraryDefinition, LibraryFunction, LibraryRef, PointerArgument } from "../CudaRuntime.ts"
import { counted } from "../runtime/words.ts"
import { trackOf } from "./accesses.ts"
import { isPart, isRaw, refuseElements, wordsOf } from "./arguments.ts"
import { isOn } from "./copies.ts"
import type { Core } from "./Core.ts"
import { refuse, refuseArgument, refuseDescribed, refuseDevices, refuseReach, refuseResource } from "./failures.ts"
import { refuseRange } from "./ranges.ts"
import type { Refusal } from "./ranges.ts"
import { refuseElsewhere } from "./recordings.ts"
import { HandleResource, ownHandle, ownMemory, unusable, unusableMemory } from "./resources.ts"
import type { HandlePlace, Owner, StreamHandles, StreamResource } from "./resources.ts"

export class LibraryResource implements LibraryRef {
  readonly owner: Owner
  readonly definition: LibraryDefinition
  /** Undefined on simulated devices. */
  readonly foreign: ForeignLibrary | undefined
  readonly #functions = new Map<string, FunctionCode>()
  constructor(owner: Owner, definition: LibraryDefinition, foreign: ForeignLibrary | undefined) {
    this.owner = owner
    this.definition = definition
    this.foreign = foreign
  }
  get path(): string | undefined {
    return this.foreign?.path
  }
  /** A function of the description; undefined if it has none of that name. */
  find(name: string): FunctionCode | undefined {
    const known = this.#functions.get(name)
    if (known !== undefined) return known
    const { functions } = this.definition
    if (!Object.hasOwn(functions, name)) return undefined
    const spec = functions[name]!
    const code = new FunctionCode(this, name, spec, this.foreign?.bind(name, spec))
    this.#functions.set(name, code)
    return code
  }
  toString(): string {
    return this.definition.name
  }
}

export class FunctionCode {
  readonly library: LibraryResource
  readonly name: string
  readonly spec: LibraryFunction
  /** Undefined on simulated devices, and if the library lacks it. */
  readonly native: ForeignFunction | undefined
  /** The parameters that have an argument. */
  readonly arity: number
  /** Undefined if the function does not make handles. */
  readonly makes: NewHandleKind | undefined
  constructor(
    library: LibraryResource,
    name: string,
    spec: LibraryFunction,
    native: ForeignFunction | undefined
  ) {
    this.library = library
    this.name = name
    this.spec = spec
    this.native = native
    this.arity = spec.parameters.filter(hasArgument).length
    this.makes = spec.parameters.find((kind) => kind.kind === "newHandle")
  }
}

const hasArgument = ({ kind }: LibraryParameter): boolean => kind !== "stream" && kind !== "newHandle"

/** Finds the function of a call. */
export const findFunction = (
  core: Core,
  operation: string,
  library: LibraryRef,
  name: string,
  argument = "name"
): FunctionCode | Effect.Effect<never, CudaError> => {
  if (!(library instanceof LibraryResource)) {
    return refuseArgument(operation, "library", library, "a library loaded with CudaLibrary.load")
  }
  if (library.owner !== core.backend) return refuse(operation, { _tag: "ForeignResource", resource: String(library) })
  if (core.closed) return refuse(operation, { _tag: "ResourceReleased", resource: "the runtime" })
  const code = library.find(name)
  if (code === undefined) {
    return refuseArgument(operation, argument, name, `a function that ${library} is described with`)
  }
  if (code.native !== undefined || library.foreign === undefined) return code
  return refuse(operation, {
    _tag: "FunctionMissing",
    functionName: name,
    library: library.definition.name,
    since: code.spec.since
  })
}

/** Where memory of a device is among the values of a function for simulated devices, and what it is an array of. */
interface Place {
  readonly at: number
  readonly list: "reads" | "writes"
  readonly index: number
  readonly element: ElementType | undefined
}

/** The checked arguments of a call. */
export class Prepared {
  /** What C gets, in the order of the parameters. */
  readonly natives: Array<unknown> = []
  /** What the function for simulated devices gets. */
  readonly given: Array<unknown> = []
  readonly reads: Array<PointerArgument> = []
  readonly writes: Array<PointerArgument> = []
  /** Where the bytes of device memory are among what the function for simulated devices gets. */
  readonly places: Array<Place> = []
  readonly handles: Array<HandleResource> = []
  /** Handles of streams without one for the stream of the call. It must be made first. */
  readonly missing: Array<StreamHandles> = []
  /** Where the stream is; -1 for none. */
  streamAt = -1
  /** Whether the call destroys a handle. */
  isRelease = false
  /** Where the handle that the call makes is stored. */
  out: BigUint64Array | Int32Array | undefined
  /** Whether the program has transferred memory of the host since it was checked. */
  get isMoved(): boolean {
    return this.natives.some((native) => ArrayBuffer.isView(native) && native.byteLength === 0)
  }
}

/** A call that enqueues nothing. The stream, if one was given, only says which handles are meant. */
interface OffStream {
  readonly deviceIndex: number
  readonly tag?: undefined
  readonly stream?: StreamResource | undefined
}

/** Where a call is made: on a stream, or only on a device. */
export type Site = StreamResource | OffStream

/** Checks the arguments of a call. Returns the failure of the first that is wrong, which names the function. */
export const prepare = (
  core: Core,
  operation: string,
  code: FunctionCode,
  values: ReadonlyArray<unknown>,
  site: Site
): Prepared | Effect.Effect<never, CudaError> => {
  const prepared = check(core, operation, code, values, site)
  return prepared instanceof Prepared ? prepared : about(code.name, prepared)
}

/** Makes a failure say which function it is about. */
export const about = (subject: string, refused: Effect.Effect<never, CudaError>) =>
  Effect.mapError(refused, (error) => new CudaError({ ...error, subject }))

const check = (
  core: Core,
  operation: string,
  code: FunctionCode,
  values: ReadonlyArray<unknown>,
  site: Site
): Prepared | Effect.Effect<never, CudaError> => {
  const { arity, spec } = code
  if (!Array.isArray(values) || values.length !== arity) return refuseCount(operation, values, arity)
  const prepared = new Prepared()
  let index = 0
  for (const kind of spec.parameters) {
    const refused = hasArgument(kind)
      ? add(core, operation, `arguments[${index}]`, kind, values[index++], prepared, site)
      : addOwn(kind, prepared)
    if (refused !== undefined) return refused
  }
  return prepared
}

const refuseCount = (operation: string, values: unknown, count: number) => {
  const expected = `${counted(count, "value")}, one per parameter that is not the stream`
  return Array.isArray(values)
    ? refuseDescribed(operation, "arguments", counted(values.length, "value"), expected)
    : refuseArgument(operation, "arguments", values, expected)
}

/** A parameter that the runtime fills in. */
const addOwn = (kind: LibraryParameter, prepared: Prepared): undefined => {
  if (kind.kind === "stream") prepared.streamAt = prepared.natives.length
  else if (kind.kind === "newHandle") prepared.out = kind.as === "i32" ? new Int32Array(1) : new BigUint64Array(1)
  prepared.natives.push(kind.kind === "newHandle" ? prepared.out : 0)
  return undefined
}

const add = (
  core: Core,
  operation: string,
  path: string,
  kind: LibraryParameter,
  value: unknown,
  prepared: Prepared,
  site: Site
): Refusal => {
  switch (kind.kind) {
    case "pointer":
      return addPointer(core, operation, path, kind, value, prepared, site)
    case "handle":
      return addHandle(core, operation, path, kind, value, prepared, site)
    case "host":
      return addHost(core, operation, path, kind, value, prepared)
    case "text":
      if (value === null ? !kind.nullable : typeof value !== "string" || value.includes("\0")) {
        return refuseArgument(operation, path, value, `a string without zero bytes${orNull(kind)}`)
      }
      return push(prepared, value, value)
    case "bytes":
      if (!(value instanceof Uint8Array) || value.byteLength !== kind.size) {
        return refuseArgument(operation, path, value, `a Uint8Array of ${counted(kind.size, "byte")}`)
      }
      return pushBytes(prepared, new Uint8Array(value))
    case "stream":
    case "newHandle":
      return undefined
    default:
      return addScalar(operation, path, kind, value, prepared)
  }
}

/** The call may begin later, and the function for simulated devices runs when the device reaches the work. */
const pushBytes = (prepared: Prepared, bytes: Uint8Array): undefined => push(prepared, { bytes }, bytes)

const push = (prepared: Prepared, native: unknown, given: unknown): undefined => {
  prepared.natives.push(native)
  prepared.given.push(given)
  return undefined
}

const orNull = ({ nullable }: { readonly nullable: boolean }): string => nullable ? ", or null" : ""

const scratch = new DataView(new ArrayBuffer(8))
const writers: { readonly [Name in ScalarName]?: Writer } = Object.fromEntries(
  Object.entries(scalarWriters).map(([name, make]) => [name, make(scratch, 0)])
)

const addScalar = (operation: string, path: string, { kind }: ScalarKind, value: unknown, prepared: Prepared) => {
  if (writers[kind]?.(value) !== true) {
    return refuseArgument(operation, path, value, `${scalarWords[kind]} (${kind})`)
  }
  return push(prepared, isHalf(kind) ? scratch.getUint16(0, true) : value, value)
}

/** 16-bit floats are passed and returned as their bits. */
const isHalf = (kind: ScalarName): boolean => kind === "f16" || kind === "bf16"

const isSimulated = ({ backend }: Core): boolean => backend.libraries.load === undefined

const addPointer = (
  core: Core,
  operation: string,
  path: string,
  kind: PointerKind,
  value: unknown,
  prepared: Prepared,
  site: Site
): Refusal => {
  if (!isPart(value)) {
    if (value === null && kind.nullable) return push(prepared, 0, null)
    if (isRaw(value) && !isSimulated(core)) return push(prepared, value.address, value)
    return refuseArgument(operation, path, value, `${wordsOf(kind.element)}${orNull(kind)}`)
  }
  const mistyped = refuseElements(operation, path, kind.element, value)
  if (mistyped !== undefined) return mistyped
  const memory = ownMemory(value.buffer.ref)
  if (unusableMemory(core.backend, memory)) return refuseResource(operation, core.backend, memory)
  if (memory.kind === "device" && site.tag !== undefined && !isOn(memory, site)) {
    return refuseReach(operation, memory, site)
  }
  const { byteLength, offset } = value
  const refused = refuseRange(operation, path, { memory, offset, byteLength })
  if (refused !== undefined) return refused
  const list = kind.access === "read" ? "reads" : "writes"
  const { element } = kind
  prepared.places.push({ at: prepared.given.length, list, index: prepared[list].length, element })
  prepared[list].push(value)
  return push(prepared, memory.address + offset, value)
}

const addHandle = (
  core: Core,
  operation: string,
  path: string,
  kind: HandleKind,
  value: unknown,
  prepared: Prepared,
  site: Site
): Refusal => {
  if (value === null && kind.nullable) return push(prepared, 0, null)
  const given = refOf(value)
  const handle = ownHandle(given as HandleResource)
  if (handle.kind !== kind.of || handle.as !== kind.as) {
    const passed = handle.kind === kind.of ? `, which C passes as ${handleWords[kind.as]}` : ""
    return refuseArgument(operation, path, value, `a handle of the kind ${kind.of}${passed}${orNull(kind)}`)
  }
  if (unusable(core.backend, handle)) return refuseResource(operation, core.backend, handle)
  if (handle.deviceIndex !== site.deviceIndex) {
    if (site.tag !== undefined) return refuseDevices(operation, handle, site)
    const resources = [String(handle), `device ${site.deviceIndex}`] as const
    return refuse(operation, {
      _tag: "DeviceMismatch",
      resources,
      deviceIndices: [handle.deviceIndex, site.deviceIndex]
    })
  }
  if (handle instanceof HandleResource) return pushHandle(prepared, handle)
  const stream = site.tag === undefined ? site.stream : site
  if (stream === undefined) {
    const expected = "a handle that is not per stream, or a call with the stream whose handle is meant"
    return refuseArgument(operation, path, value, expected)
  }
  return addHandleOf(core, operation, handle, stream, prepared)
}

const pushHandle = (prepared: Prepared, handle: HandleResource): undefined => {
  prepared.handles.push(handle)
  return push(prepared, handle.handle, handle.handle)
}

const addHandleOf = (
  core: Core,
  operation: string,
  handles: StreamHandles,
  stream: StreamResource,
  prepared: Prepared
): Refusal => {
  const { backend } = core
  if (unusable(backend, stream)) return refuseResource(operation, backend, stream)
  if (stream.deviceIndex !== handles.deviceIndex) return refuseDevices(operation, handles, stream)
  const elsewhere = core.recordings === 0 ? undefined : refuseElsewhere(operation, stream)
  if (elsewhere !== undefined) return elsewhere
  const own = handles.find(placeOf(core, stream))
  if (own !== undefined) return pushHandle(prepared, own)
  prepared.missing.push(handles)
  return push(prepared, 0, 0)
}

/** What has a handle of its own: the stream, or the recording that it is part of, because launches run on any stream. */
export const placeOf = (core: Core, stream: StreamResource): HandlePlace =>
  stream.recording?.root ?? trackOf(core, stream).stream

/** Makes the missing handles, and repeats what needs them. */
export const withHandles = <A>(
  operation: string,
  { missing }: Prepared,
  stream: StreamResource,
  again: () => Effect.Effect<A, CudaError>
): Effect.Effect<A, CudaError> =>
  Effect.andThen(
    Effect.forEach(missing, (handles) => handles.make(operation, stream), { discard: true }),
    Effect.suspend(again)
  )

const handleWords: { readonly [As in HandleType]: string } = { pointer: "a pointer", i32: "an int" }

const refOf = (value: unknown): unknown =>
  typeof value === "object" && value !== null && "ref" in value ? value.ref : value

/** The device of the first handle among the values, for calls that name no other. */
export const deviceOf = ({ backend }: Core, values: ReadonlyArray<unknown>, otherwise: number): number => {
  if (!Array.isArray(values)) return otherwise
  for (const value of values) {
    const given = refOf(value)
    const handle = ownHandle(given as HandleResource)
    if (handle === given && handle.owner === backend) return handle.deviceIndex
  }
  return otherwise
}

/** Without memory, an array has no bytes. */
const addHost = (
  core: Core,
  operation: string,
  path: string,
  kind: HostKind,
  value: unknown,
  prepared: Prepared
): Refusal => {
  if (value === null && kind.nullable) return push(prepared, null, null)
  const bytes = bytesOf(value)
  if (bytes === undefined) {
    const expected = `a typed array, neither empty nor of a SharedArrayBuffer${orNull(kind)}`
    return refuseArgument(operation, path, value, expected)
  }
  return push(prepared, bytes, kind.access === "read" && isSimulated(core) ? bytes.slice() : bytes)
}

const bytesOf = (value: unknown): Uint8Array | undefined => {
  try {
    if (!ArrayBuffer.isView(value) || value.byteLength === 0) return undefined
    return value.buffer instanceof ArrayBuffer
      ? new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
      : undefined
  } catch {
    return undefined
  }
}

/** What a function for simulated devices must return, in words; undefined if it has. */
export const wrongResult = ({ spec: { returns } }: FunctionCode, result: unknown): string | undefined => {
  if (returns === "void") {
    return Predicate.isPromiseLike(result)
      ? "nothing: the function must be synchronous"
      : undefined
  }
  if (returns === "status") {
    const isRight = result === undefined || Number.isInteger(result)
    return isRight ? undefined : "a status number or nothing: the function must be synchronous"
  }
  if (returns.kind === "text") {
    return result === undefined || result === null || typeof result === "string"
      ? undefined
      : "a string"
  }
  return writers[returns.kind]?.(result) === true ? undefined : `${scalarWords[returns.kind]} (${returns.kind})`
}

/** The value that a function returned. */
export const valueOf = ({ native, spec: { returns } }: FunctionCode, result: unknown): unknown => {
  if (returns === "status" || returns === "void") return undefined
  if (returns.kind === "text") return result ?? undefined
  const passed = native !== undefined && isHalf(returns.kind) ? "u16" : returns.kind
  if (writers[passed]?.(result) !== true) return result
  return scalarReaders[returns.kind](scratch, 0)
}

/** The address or the number of the handle that a call has made. */
export const madeBy = ({ out }: Prepared): number => Number(out![0])

/** Where a handle is passed as it was made. */
export const isAlike = (kind: LibraryParameter | undefined, of: string, as: HandleType): boolean =>
  kind?.kind === "handle" && kind.of === of && kind.as === as
