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
  CudaLibrary,
  CudaMemory,
  CudaParameter,
  CudaStream
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
