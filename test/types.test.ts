/**
 * What the types promise: both forms of every operation, times only of timed events, narrowing by reason. The type check
 * decides; the test runs what it can without a device.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CheckedRuntime,
  CudaBlas,
  CudaDevice,
  CudaError,
  CudaEvent,
  CudaGraph,
  CudaInterprocess,
  CudaKernel,
  CudaLibrary,
  CudaMemory,
  CudaMemoryPool,
  CudaNccl,
  CudaParameter,
  CudaPartition,
  CudaPlacement,
  CudaStream,
  SimulatedRuntime
} from "effect-cuda"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"

type Same<A, B> = [A, B] extends [B, A] ? true : false

/** Compiles only when both are the same type. */
const same = <A, B>(proof: Same<A, B>): boolean => proof

interface Given {
  readonly stream: CudaStream.CudaStream
  readonly event: CudaEvent.CudaEvent
  readonly timed: CudaEvent.TimedEvent
  readonly device: CudaMemory.DeviceBuffer
  readonly host: CudaMemory.HostBuffer
}

type Operation = Effect.Effect<void, CudaError.CudaError>

const demo = CudaLibrary.define({
  name: "demo",
  files: () => ["libdemo.so.1"],
  wheels: [],
  statuses: {},
  functions: {
    create: CudaLibrary.func([CudaLibrary.newHandleOf("demo"), CudaParameter.i32]),
    destroy: CudaLibrary.func([CudaLibrary.handleOf("demo")]),
    scale: CudaLibrary.func(
      [
        CudaLibrary.handleOf("demo"),
        CudaParameter.i32,
        CudaLibrary.hostInput,
        CudaParameter.input,
        CudaLibrary.nullable(CudaParameter.output),
        CudaLibrary.stream
      ],
      { simulate: (_, count, factor, from, to) => void to?.set(from.map((byte) => byte * count * factor[0]!)) }
    ),
    version: CudaLibrary.func([], { returns: CudaParameter.u64 }),
    name: CudaLibrary.func([CudaLibrary.nullable(CudaLibrary.text)], { returns: CudaLibrary.text })
  }
})

type Library = CudaLibrary.CudaLibrary<typeof demo.functions>

/** Calls of a library: arguments and results have the types of the parameters, without the stream. */
export const libraryCalls = (
  library: Library,
  handle: CudaLibrary.LibraryHandle<"demo">,
  other: CudaLibrary.LibraryHandle<"other">,
  { device, stream }: Given
) => {
  const factor = Float32Array.of(1)
  const scale: Operation = CudaLibrary.call(library, "scale", [handle, 4, factor, device, null], stream)
  const version: Effect.Effect<bigint, CudaError.CudaError> = CudaLibrary.call(library, "version", [])
  const name: Effect.Effect<string | undefined, CudaError.CudaError> = CudaLibrary.call(library, "name", [null])
  const made = CudaLibrary.handle(library, { create: "create", values: [3], destroy: "destroy" })
  const isDemo = same<Effect.Success<typeof made>, CudaLibrary.LibraryHandle<"demo">>(true)
  const perStream = { create: "create", values: [3], destroy: "destroy", perStream: true } as const
  const streamed = CudaLibrary.handle(library, perStream)
  const isStreamed = same<Effect.Success<typeof streamed>, CudaLibrary.StreamHandles<"demo">>(true)
  const scaleStreamed = Effect.flatMap(
    streamed,
    (handles) => CudaLibrary.call(library, "scale", [handles, 4, factor, device, null], stream)
  )
  const any: CudaLibrary.CudaLibrary = library
  return [
    scale,
    version,
    name,
    isDemo,
    isStreamed,
    scaleStreamed,
    any,
    // @ts-expect-error a handle of another kind
    CudaLibrary.call(library, "scale", [other, 4, factor, device, null]),
    // @ts-expect-error null where memory is needed
    CudaLibrary.call(library, "scale", [handle, 4, factor, null, device]),
    // @ts-expect-error an argument too few
    CudaLibrary.call(library, "scale", [handle, 4, factor, device]),
    // @ts-expect-error the stream is not among the arguments
    CudaLibrary.call(library, "scale", [handle, 4, factor, device, null, stream]),
    // @ts-expect-error no function of that name
    CudaLibrary.call(library, "scales", []),
    // @ts-expect-error makes a handle
    CudaLibrary.call(library, "create", [3]),
    // @ts-expect-error makes no handle
    CudaLibrary.handle(library, { create: "destroy", destroy: "destroy" }),
    // @ts-expect-error a value is needed
    CudaLibrary.handle(library, { create: "create", destroy: "destroy" }),
    // @ts-expect-error a handle per stream needs no order
    CudaLibrary.handle(library, { ...perStream, ordered: true }),
    // @ts-expect-error the value is a number
    CudaLibrary.handle(library, { create: "create", values: ["3"], destroy: "destroy" })
  ]
}

/** C functions take and return anything, and are found by the names of the description. */
export const nativeFunctions = (library: Library) => {
  const found = CudaLibrary.native(library, "scale")
  const isFunction = same<Effect.Success<typeof found>, CudaLibrary.NativeFunction | undefined>(true)
  const isFailing = same<Effect.Error<typeof found>, CudaError.CudaError>(true)
  const asksForNothing = same<Effect.Services<typeof found>, never>(true)
  return [
    isFunction,
    isFailing,
    asksForNothing,
    CudaMemory.enqueue({ status: library }, () => 0),
    // @ts-expect-error no function of that name
    CudaLibrary.native(library, "scales")
  ]
}

/** Products: a plan asks for the service and a scope, and a product for nothing. */
export const products = ({ device, host, stream }: Given, plan: CudaBlas.MatmulPlan) => {
  const matrix = { rows: 16, columns: 16, type: "f32" } as const
  const planned = CudaBlas.plan({ a: matrix, b: matrix, d: { ...matrix, order: "column" }, epilogue: { bias: true } })
  const isPlan = same<Effect.Success<typeof planned>, CudaBlas.MatmulPlan>(true)
  const asksFor = same<Effect.Services<typeof planned>, CudaBlas.CudaBlas | Scope.Scope>(true)
  const operands = { a: device, b: CudaMemory.slice(device, 0, 1024), d: device }
  const product: Operation = CudaBlas.matmul(plan, { ...operands, alpha: 2, bias: undefined }, stream)
  const layer: Layer.Layer<CudaBlas.CudaBlas, CudaError.CudaError, CudaRuntime> = CudaBlas.layer()
  return [
    isPlan,
    asksFor,
    product,
    layer,
    // @ts-expect-error no such type of numbers
    CudaBlas.plan({ a: { ...matrix, type: "f128" }, b: matrix, d: matrix }),
    // @ts-expect-error no result
    CudaBlas.plan({ a: matrix, b: matrix }),
    // @ts-expect-error no such activation
    CudaBlas.plan({ a: matrix, b: matrix, d: matrix, epilogue: { activation: "tanh" } }),
    // @ts-expect-error memory of the host
    CudaBlas.matmul(plan, { ...operands, a: host }),
    // @ts-expect-error no memory for the result
    CudaBlas.matmul(plan, { a: device, b: device }),
    // @ts-expect-error not a plan
    CudaBlas.matmul({ rows: 16 }, operands)
  ]
}

/** Every operation of two arguments, data first and data last: neither asks for anything. */
export const bothForms = ({ device, event, host, stream, timed }: Given): ReadonlyArray<Operation> => [
  CudaEvent.record(event, stream),
  event.pipe(CudaEvent.record(stream)),
  CudaEvent.record(event),
  event.pipe(CudaEvent.record()),
  CudaEvent.wait(event, stream),
  event.pipe(CudaEvent.wait(stream)),
  CudaStream.waitEvent(stream, event),
  stream.pipe(CudaStream.waitEvent(event)),
  CudaStream.waitStream(stream, stream),
  stream.pipe(CudaStream.waitStream(stream)),
  CudaMemory.copy(device, host, stream),
  device.pipe(CudaMemory.copy(host, stream)),
  device.pipe(CudaMemory.copy(CudaMemory.slice(host, 0, 8))),
  CudaMemory.fill16(device, 1, stream),
  CudaMemory.fill(device, 1, stream),
  device.pipe(CudaMemory.fill(1, stream)),
  device.pipe(CudaMemory.fill16(1), Effect.andThen(device.pipe(CudaMemory.fill32(1, stream)))),
  CudaMemory.access(Effect.void, { reads: [host], writes: [device], stream }),
  Effect.void.pipe(CudaMemory.access({ writes: [device], stream })),
  CudaMemory.enqueue({ reads: [host], writes: [device], stream, status: { 1: "BAD" } }, (handle: number) => handle),
  CudaMemory.enqueue({ stream, status: CudaError.reasonFromStatus }, () => {}),
  device.pipe(CudaMemory.fill(1)),
  CudaMemory.upload(device, new Uint8Array(8), stream),
  device.pipe(CudaMemory.slice(0, 8), CudaMemory.upload(new Float32Array(2))),
  CudaMemory.download(new Uint8Array(8), CudaMemory.slice(device, 0, 8)),
  CudaMemory.download(device, stream)(new Uint8Array(8)),
  Effect.asVoid(CudaEvent.elapsedTime(timed, timed)),
  Effect.asVoid(timed.pipe(CudaEvent.elapsedTime(timed))),
  Effect.void.pipe(CudaStream.withStream(stream)),
  CudaStream.withStream(Effect.void, stream)
]

/** Memory with element types: what has another type does not pass, bytes pass for copies. */
export const arrays = ({ device, host, stream }: Given) => {
  const floats = CudaMemory.array("f32", 4)
  const isFloats = same<typeof floats, Of<CudaMemory.DeviceArray<"f32">>>(true)
  const pinned = CudaMemory.pinnedArray("i64", 4)
  const isPinned = same<typeof pinned, Of<CudaMemory.PinnedArray<"i64">>>(true)
  const made = CudaMemory.fromArray(new Float64Array(4), { stream })
  const isMade = same<typeof made, Of<CudaMemory.DeviceArray<"f64">>>(true)
  const bits = CudaMemory.fromArray(new Uint16Array(4))
  const isBits = same<typeof bits, Of<CudaMemory.DeviceArray<"u16">>>(true)
  const halves = CudaMemory.fromArray(new Uint16Array(4), { type: "bf16" })
  const isHalves = same<typeof halves, Of<CudaMemory.DeviceArray<"bf16">>>(true)
  const bytes = CudaMemory.fromArray(Buffer.alloc(4))
  const isBytes = same<typeof bytes, Of<CudaMemory.DeviceArray<"u8">>>(true)
  const parsed = CudaMemory.fromArray(Buffer.alloc(4), { type: "f32", stream })
  const isParsed = same<typeof parsed, Of<CudaMemory.DeviceArray<"f32">>>(true)
  const typed = CudaMemory.typed(host, "u8")
  type Typed = Effect.Effect<CudaMemory.Elements<"u8", CudaMemory.HostBuffer>, CudaError.CudaError>
  const isTyped = same<typeof typed, Typed>(true)
  return [
    isFloats,
    isPinned,
    isMade,
    isBits,
    isHalves,
    isBytes,
    isParsed,
    isTyped,
    device.pipe(CudaMemory.typed("u8")),
    // @ts-expect-error no such type
    CudaMemory.array("bool", 4),
    // @ts-expect-error the bits of a float of 32 bits are no 16-bit float
    CudaMemory.fromArray(new Float32Array(4), { type: "f16" }),
    // @ts-expect-error not a typed array
    CudaMemory.fromArray([1, 2]),
    // @ts-expect-error no element type
    CudaMemory.toArray(device),
    // @ts-expect-error pinned memory is not read by the device
    Effect.flatMap(pinned, CudaMemory.toArray),
    // @ts-expect-error no element type
    CudaMemory.elements(device, 0),
    // @ts-expect-error no element type, and no constructor
    CudaMemory.view(host)
  ]
}

/** Copies of memory with element types. */
export const arrayCopies = (
  { device, host, stream }: Given,
  floats: CudaMemory.DeviceArray<"f32">,
  bytes: CudaMemory.DeviceArray<"u8">,
  pinned: CudaMemory.PinnedArray<"f32">
) => {
  const part = CudaMemory.elements(floats, 1, 2)
  const isPart = same<typeof part, CudaMemory.Elements<"f32", CudaMemory.DeviceBuffer>>(true)
  const last = floats.pipe(CudaMemory.elements(3))
  const isAlike = same<typeof last, typeof part>(true)
  const read = CudaMemory.toArray(part)
  const isRead = same<Effect.Success<typeof read>, Float32Array<ArrayBuffer>>(true)
  const isView = same<ReturnType<typeof viewOf>, Float32Array<ArrayBuffer>>(true)
  const operations: ReadonlyArray<Operation> = [
    CudaMemory.copy(floats, pinned, stream),
    CudaMemory.copy(floats, device),
    CudaMemory.copy(host, floats),
    CudaMemory.copy(floats, CudaMemory.slice(bytes, 0)),
    floats.pipe(CudaMemory.copy(part, stream)),
    device.pipe(CudaMemory.copy(floats)),
    floats.pipe(CudaMemory.copy(device)),
    CudaMemory.upload(part, new Float32Array(2)),
    CudaMemory.upload(floats, Buffer.alloc(16)),
    part.buffer.pipe(CudaMemory.upload(new Float64Array(2))),
    floats.pipe(CudaMemory.upload(new Float32Array(4))),
    CudaMemory.download(new Float32Array(4), floats),
    CudaMemory.download(floats)(new Float32Array(4)),
    CudaMemory.download(floats)(new DataView(new ArrayBuffer(16))),
    CudaMemory.fill(part, 0),
    CudaMemory.access(Effect.void, { reads: [part], writes: [bytes] })
  ]
  return [
    isPart,
    isAlike,
    isRead,
    isView,
    operations,
    // @ts-expect-error another element type
    CudaMemory.copy(floats, bytes),
    // @ts-expect-error another element type
    CudaMemory.copy(bytes, part),
    // @ts-expect-error another element type
    floats.pipe(CudaMemory.copy(bytes)),
    // @ts-expect-error another kind of array
    CudaMemory.upload(floats, new Float64Array(2)),
    // @ts-expect-error another kind of array
    part.pipe(CudaMemory.upload(new Int32Array(2))),
    // @ts-expect-error another kind of array
    CudaMemory.download(new Int32Array(4), floats),
    // @ts-expect-error another kind of array
    CudaMemory.download(floats)(new Int32Array(4))
  ]
}

/** Pointers with an element type take memory of that type alone; pointers without one take any. */
export const arrayArguments = (
  { device, host }: Given,
  floats: CudaMemory.DeviceArray<"f32">,
  bytes: CudaMemory.DeviceArray<"u8">,
  kernel: CudaKernel.CudaKernel<
    [
      CudaParameter.PointerKind<false, "f32">,
      CudaParameter.PointerKind<true, "u8">,
      CudaParameter.PointerKind<false, undefined>
    ]
  >,
  exec: CudaGraph.CudaGraphExec<{ readonly to: ReturnType<typeof floatsParameter> }>
) => {
  const one = { grid: 1, block: 1 }
  const { array, inputOf, nullable, outputOf, struct } = CudaParameter
  const isNullable = same<ReturnType<typeof nullableOf>, CudaParameter.PointerKind<true, "f16">>(true)
  const record = struct({ from: inputOf("f32"), to: array(nullable(outputOf("u8")), 2) })
  type Argument = CudaParameter.KernelArgument<typeof record>
  const right: Argument = { from: CudaMemory.elements(floats, 1), to: [null, bytes] }
  // @ts-expect-error another element type in a struct
  const wrong: Argument = { from: bytes, to: [null, bytes] }
  // @ts-expect-error another element type in an array
  const other: Argument = { from: floats, to: [null, floats] }
  const simulated = SimulatedRuntime.kernel({
    parameters: [outputOf("i64"), nullable(inputOf("bf16")), CudaParameter.pointer],
    run: ({ args: [to, from, any] }) => {
      const longs: BigInt64Array = to.array
      const bits: Uint16Array | undefined = from?.array
      longs[0] = BigInt(bits?.[0] ?? any.byteLength)
      // @ts-expect-error no element type was declared
      void any.array
    }
  })
  return [
    isNullable,
    right,
    wrong,
    other,
    simulated,
    CudaKernel.launch(kernel, one, [floats, null, bytes]),
    CudaKernel.launch(kernel, one, [CudaMemory.elements(floats, 0, 1), bytes, device]),
    CudaKernel.launch(kernel, one, [CudaParameter.address(0), bytes, host]),
    CudaGraph.launch(exec, { to: floats }),
    // @ts-expect-error another element type
    CudaKernel.launch(kernel, one, [bytes, null, device]),
    // @ts-expect-error no element type: CudaMemory.typed gives it one
    CudaKernel.launch(kernel, one, [device, null, device]),
    // @ts-expect-error another element type
    CudaKernel.launch(kernel, one, [floats, floats, device]),
    // @ts-expect-error the bytes of an array have no element type
    CudaKernel.launch(kernel, one, [CudaMemory.slice(floats, 0), null, device]),
    // @ts-expect-error no such type
    CudaParameter.inputOf("bool"),
    // @ts-expect-error another element type
    CudaGraph.launch(exec, { to: bytes }),
    // @ts-expect-error no element type
    CudaGraph.launch(exec, { to: device })
  ]
}

const floatsParameter = () => CudaGraph.array("f32", 4)
const nullableOf = () => CudaParameter.nullable(CudaParameter.inputOf("f16"))

/** Placeholders of graphs have the types of their parameters. */
export const arrayPlaceholders = () =>
  CudaGraph.recordWith(
    { to: CudaGraph.array("f32", 4), from: CudaGraph.pinnedArray("f32", 4), bytes: CudaGraph.buffer(4) },
    ({ bytes, from, to }) => {
      const isArray = same<typeof to, CudaMemory.DeviceArray<"f32">>(true)
      const isPinned = same<typeof from, CudaMemory.PinnedArray<"f32">>(true)
      const isBuffer = same<typeof bytes, CudaMemory.DeviceBuffer>(true)
      return Effect.as(CudaMemory.copy(to, from), [isArray, isPinned, isBuffer])
    }
  )

const viewOf = (pinned: CudaMemory.PinnedArray<"f32">) => CudaMemory.view(pinned)

/** The same for pools, growable buffers and memory that is lent, and for regions of partitions, leases and communicators. */
export const bothFormsOf = (
  { device, stream }: Given,
  growable: CudaMemory.GrowableBuffer,
  pool: CudaMemoryPool.MemoryPool,
  partition: CudaPartition.CudaPartition,
  communicators: ReadonlyArray<CudaNccl.Communicator>
): ReadonlyArray<Effect.Effect<void, CudaError.CudaError, CudaRuntime>> => {
  const use = (token: CudaInterprocess.MemoryToken) => Effect.asVoid(Effect.succeed(token.handle))
  return [
    CudaMemory.grow(growable, 8),
    growable.pipe(CudaMemory.grow(8)),
    CudaMemory.shrink(growable, 8),
    growable.pipe(CudaMemory.shrink(8)),
    CudaMemoryPool.allowAccess(pool, 1),
    pool.pipe(CudaMemoryPool.allowAccess(1)),
    CudaMemoryPool.denyAccess(pool, 1),
    pool.pipe(CudaMemoryPool.denyAccess(1)),
    CudaInterprocess.lend(device, use, { stream }),
    device.pipe(CudaInterprocess.lend(use, { stream })),
    CudaPartition.within(Effect.void, partition),
    Effect.void.pipe(CudaPartition.within(partition)),
    CudaPlacement.withLease(Effect.void, { perDevice: 1 }),
    Effect.void.pipe(CudaPlacement.withLease({ perDevice: 1 })),
    CudaNccl.guard(Effect.void, communicators),
    Effect.void.pipe(CudaNccl.guard(communicators)),
    // @ts-expect-error a buffer that does not grow
    CudaMemory.grow(device, 8),
    // @ts-expect-error no memory
    CudaInterprocess.lend(stream, use)
  ]
}

export const refused = ({ device, event, timed }: Given) => [
  // @ts-expect-error an event without times has no elapsed time
  CudaEvent.elapsedTime(event, timed),
  // @ts-expect-error the call must be synchronous
  CudaMemory.enqueue({ writes: [device] }, async () => 0),
  // @ts-expect-error timing and interprocess exclude each other
  CudaEvent.make({ timing: true, interprocess: true })
]

type Of<A> = Effect.Effect<A, CudaError.CudaError, CudaRuntime | Scope.Scope>

describe("types", () => {
  it("of constructors ask for the runtime and a scope, and tell timed events apart", () => {
    assert.isTrue(same<ReturnType<typeof makeTimed>, Of<CudaEvent.TimedEvent>>(true))
    assert.isTrue(same<ReturnType<typeof makeUntimed>, Of<CudaEvent.CudaEvent>>(true))
    assert.isTrue(same<ReturnType<typeof CudaStream.make>, Of<CudaStream.CudaStream>>(true))
    assert.isTrue(same<ReturnType<typeof CudaMemory.allocateHost>, Of<CudaMemory.HostBuffer>>(true))
    assert.isTrue(same<ReturnType<typeof CudaMemory.pin>, Of<CudaMemory.HostBuffer>>(true))
    assert.isTrue(same<ReturnType<typeof adopt>, Of<CudaMemory.DeviceBuffer>>(true))
    assert.isTrue(same<Effect.Success<ReturnType<typeof measure>>, Duration.Duration>(true))
  })

  it("of wrapped events need no scope, and tell timed events apart", () => {
    assert.isTrue(same<ReturnType<typeof wrapTimed>, Wrapped<CudaEvent.TimedEvent>>(true))
    assert.isTrue(same<ReturnType<typeof wrapUntimed>, Wrapped<CudaEvent.CudaEvent>>(true))
  })

  it("of regions add only what they need", () => {
    const inside = Effect.succeed(1).pipe(CudaDevice.withDevice(0))
    assert.isTrue(same<typeof inside, Effect.Effect<number, CudaError.CudaError, CudaRuntime>>(true))
  })

  it("of failures narrow by reason", () => {
    const error = new CudaError.CudaError({ operation: "x", reason: CudaError.reasonFromStatus(2) })
    const recovered = Effect.fail(error).pipe(
      Effect.catchReason("CudaError", "OutOfMemory", (reason) => Effect.succeed(reason.code)),
      Effect.catchReason("CudaError", "InvalidArgument", (reason) => Effect.succeed(reason.argument.length))
    )
    assert.isTrue(same<Effect.Success<typeof recovered>, number>(true))
    assert.strictEqual(Effect.runSync(recovered), 2)
  })
})

type Wrapped<A> = Effect.Effect<A, CudaError.CudaError, CudaRuntime>

const wrapTimed = () => CudaEvent.fromHandle(1n, { timing: true })
const wrapUntimed = () => CudaEvent.fromHandle(1n)
const adopt = () => CudaMemory.fromAddress(1n, 1, { release: Effect.void })
const makeTimed = () => CudaEvent.make({ timing: true })
const makeUntimed = () => CudaEvent.make({ blocking: true })
const measure = (timed: CudaEvent.TimedEvent) => CudaEvent.elapsedTime(timed, timed)

describe("a check", () => {
  it("needs a runtime and what else the program needs, and adds the failure of reports", () => {
    const of = (program: Effect.Effect<number, "no", CudaRuntime | CheckedRuntime.Checker | Scope.Scope | "more">) =>
      CheckedRuntime.check(program)
    assert.isTrue(
      same<ReturnType<typeof of>, Effect.Effect<number, "no" | CudaError.CudaError, CudaRuntime | "more">>(true)
    )
  })

  it("ignores by rules, functions, or both", () => {
    const rule: CheckedRuntime.IgnoreRule = { reason: "on purpose", report: ["Race"], operation: ["a", /b/] }
    const options: ReadonlyArray<CheckedRuntime.CheckOptions> = [
      { ignore: rule },
      { ignore: (report) => report._tag === "Race" },
      { ignore: [rule, () => true] },
      { ignore: undefined }
    ]
    assert.lengthOf(options, 4)
    // @ts-expect-error a rule says why
    const wrong: CheckedRuntime.IgnoreRule = { report: "Race" }
    assert.isDefined(wrong)
  })
})
