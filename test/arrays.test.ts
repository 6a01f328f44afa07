/**
 * Element types in every place that takes a pointer: parameters, structs, arrays and nullable pointers of kernels, parameters of graphs, and
 * functions of libraries, on the stub driver and on a simulated device. And what simulated kernels and functions get.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CudaGraph,
  CudaKernel,
  CudaLibrary,
  CudaMemory,
  CudaModule,
  CudaParameter,
  CudaProgram,
  SimulatedRuntime
} from "effect-cuda"
import type { CudaRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { failsWith, refuses } from "./support/assertions.ts"
import { assertReleased, openStub, stubLayer } from "./support/stubDriver.ts"

const stub = openStub()

const { array, bf16, i32, inputOf, nullable, outputOf, pointer, pointerOf, struct, u32 } = CudaParameter

const parameters = [
  outputOf("f32"),
  struct({ scale: bf16, from: inputOf("u8") }),
  array(pointerOf("i64"), 2),
  nullable(inputOf("f16")),
  pointer
] as const

const program = CudaProgram.fromBytes(
  `.version 7.0
.target sm_70
.address_size 64
.visible .entry mixed(.param .b64 to, .param .align 8 .b8 pair[16], .param .align 8 .b8 both[16], .param .b64 maybe, .param .b64 any) { ret; }
`,
  { name: "mixed.ptx" }
)

const simulatedMixed = SimulatedRuntime.kernel({
  parameters,
  run: ({ args: [to, { from, scale }, [first, second], maybe, any] }) => {
    const [sum = 0n] = first!.array
    to.array[0] = scale * from.array[1]! + Number(sum) + second!.length + (maybe === null ? 0 : maybe.array[0]!)
    any.store("u32", 0, any.byteLength)
  }
})

const native = Layer.suspend(() => {
  stub.reset()
  return stubLayer(stub)
})
const simulated = Layer.suspend(() => SimulatedRuntime.layer({ kernels: { mixed: simulatedMixed } }))

const forced = <A>(value: unknown): A => value as A

const one = { grid: 1, block: 1 }

describe.each([["the driver", native], ["a simulated device", simulated]] as const)("on %s", (name, runtime) => {
  const isSimulated = name === "a simulated device"
  const run = <A, E>(body: Effect.Effect<A, E, CudaRuntime.CudaRuntime | Scope.Scope>) =>
    body.pipe(
      Effect.scoped,
      Effect.provide(runtime),
      Effect.tap(() => isSimulated ? Effect.void : Effect.sync(() => assertReleased(stub)))
    )

  const given = Effect.gen(function*() {
    const module = yield* CudaModule.load(yield* program)
    const kernel = yield* CudaKernel.get(module, "mixed", parameters)
    const floats = yield* CudaMemory.array("f32", 4)
    const bytes = yield* CudaMemory.fromArray(Uint8Array.of(1, 2, 3, 4))
    const longs = yield* CudaMemory.fromArray(BigInt64Array.of(5n, 6n, 7n))
    const halves = yield* CudaMemory.fromArray(Uint16Array.of(100), { type: "f16" })
    const any = yield* CudaMemory.array("f64", 3)
    const pair = { scale: 2, from: bytes }
    const both = [longs, CudaMemory.elements(longs, 1)]
    return { kernel, floats, bytes, longs, halves, any, pair, both }
  })

  it.live("memory of the declared types launches", () =>
    run(Effect.gen(function*() {
      const { any, both, floats, halves, kernel, pair } = yield* given
      yield* CudaKernel.launch(kernel, one, [floats, pair, both, halves, any])
      const raw = CudaParameter.address(floats.address)
      yield* CudaKernel.launch(kernel, one, [raw, pair, both, null, CudaMemory.slice(any, 8)])
      if (!isSimulated) return assert.lengthOf(stub.calls("cuLaunchKernelEx"), 2)
      yield* CudaKernel.launch(kernel, one, [CudaMemory.elements(floats, 1, 1), pair, both, halves, any])
      const [first, second] = yield* CudaMemory.toArray(floats)
      assert.deepStrictEqual([first, second], [2 * 2 + 5 + 2, 2 * 2 + 5 + 2 + 100])
      assert.deepStrictEqual((yield* CudaMemory.toArray(any))[0], new Float64Array(Uint32Array.of(24, 0).buffer)[0])
    })))

  it.live("memory of other types is refused by name, and so is memory without one", () =>
    run(Effect.gen(function*() {
      const { any, both, bytes, floats, halves, kernel, longs, pair } = yield* given
      const launch = (...values: ReadonlyArray<unknown>) => CudaKernel.launch(kernel, one, forced(values))
      const untyped = yield* CudaMemory.allocate(16)
      const mixed = yield* failsWith(launch(bytes, pair, both, halves, any), "InvalidArgument")
      assert.deepInclude(mixed, { argument: "arguments[0]", value: "elements of u8" })
      assert.include(mixed.expected, "elements of f32")
      const unknown = yield* failsWith(launch(untyped, pair, both, halves, any), "InvalidArgument")
      assert.deepInclude(unknown, { argument: "arguments[0]", value: "bytes without an element type" })
      yield* refuses(launch(CudaMemory.slice(floats, 0), pair, both, halves, any), "arguments[0]")
      yield* refuses(launch(floats, { ...pair, from: floats }, both, halves, any), "arguments[1].from")
      yield* refuses(launch(floats, pair, [longs, CudaMemory.elements(bytes, 0)], halves, any), "arguments[2][1]")
      const bits = yield* CudaMemory.fromArray(Uint16Array.of(100))
      yield* refuses(launch(floats, pair, both, bits, any), "arguments[3]")
      const wrong = yield* failsWith(launch(null, pair, both, halves, any), "InvalidArgument")
      assert.deepInclude(wrong, { argument: "arguments[0]", expected: "an array of f32 or elements of one" })
      const seen = yield* CudaMemory.typed(untyped, "f32")
      yield* launch(seen, pair, both, null, untyped)
      if (!isSimulated) assert.lengthOf(stub.calls("cuLaunchKernelEx"), 1)
    })))

  it.live("graphs take arrays as parameters", () =>
    run(Effect.gen(function*() {
      const { bytes, floats, longs } = yield* given
      const graph = yield* CudaGraph.recordWith(
        { to: CudaGraph.array("f32", 2), from: CudaGraph.pinnedArray("f32", 2) },
        ({ from, to }) => {
          assert.deepStrictEqual([to.element, to.length, from.element, from.length], ["f32", 2, "f32", 2])
          return CudaMemory.copy(CudaMemory.elements(to, 1), CudaMemory.elements(from, 0, 1))
        }
      )
      const exec = yield* CudaGraph.instantiate(graph)
      const from = yield* CudaMemory.pinnedArray("f32", 2)
      CudaMemory.view(from).set([3, 4])
      yield* CudaMemory.fill(floats, 0)
      yield* CudaGraph.launch(exec, { to: floats, from })
      yield* CudaGraph.launch(exec, { to: CudaMemory.elements(floats, 2), from })
      if (isSimulated) assert.deepStrictEqual(yield* CudaMemory.toArray(floats), Float32Array.of(0, 3, 0, 3))
      const mixed = yield* failsWith(
        CudaGraph.launch(exec, { to: forced<typeof floats>(bytes), from }),
        "InvalidArgument"
      )
      assert.deepInclude(mixed, { argument: "values.to", value: "elements of u8" })
      const untyped = forced<typeof floats>(yield* CudaMemory.allocate(8))
      yield* refuses(CudaGraph.launch(exec, { to: untyped, from }), "values.to")
      yield* refuses(CudaGraph.launch(exec, { to: CudaMemory.elements(floats, 3), from }), "values.to.byteLength")
      yield* refuses(CudaGraph.launch(exec, { to: floats, from: forced<typeof from>(null) }), "values.from")
      const outer = CudaGraph.record(CudaGraph.embed(graph, { to: forced<typeof floats>(longs), from }))
      yield* refuses(outer, "values.to")
      yield* CudaGraph.record(CudaGraph.embed(graph, { to: floats, from }))
      for (const length of [0.5, -1, 0, NaN]) {
        const wrong = CudaGraph.recordWith({ to: CudaGraph.array("f64", length) }, () => Effect.void)
        yield* failsWith(wrong, "InvalidArgument")
      }
      const type = forced<"f32">("bool")
      yield* failsWith(CudaGraph.recordWith({ to: CudaGraph.array(type, 1) }, () => Effect.void), "InvalidArgument")
    })))

  it.live("arrays of a graph have types, too", () =>
    run(Effect.gen(function*() {
      const { floats } = yield* given
      const graph = yield* CudaGraph.record(Effect.gen(function*() {
        const inside = yield* CudaMemory.array("f32", 2)
        assert.deepStrictEqual([inside.element, inside.length], ["f32", 2])
        const again = yield* CudaMemory.typed(CudaMemory.slice(inside, 4), "f32")
        yield* CudaMemory.fill32(inside, 0x3f80_0000)
        yield* CudaMemory.copy(CudaMemory.elements(floats, 3), again)
        yield* refuses(CudaMemory.typed(CudaMemory.slice(inside, 2), "f32"), "offset")
      }))
      const exec = yield* CudaGraph.instantiate(graph)
      yield* CudaMemory.fill(floats, 0)
      yield* CudaGraph.launch(exec)
      if (isSimulated) assert.deepStrictEqual(yield* CudaMemory.toArray(floats), Float32Array.of(0, 0, 0, 1))
    })))

  it.live("a kernel of arrays can be part of a graph", () =>
    run(Effect.gen(function*() {
      const { any, both, halves, kernel, pair } = yield* given
      const graph = yield* CudaGraph.recordWith(
        { to: CudaGraph.array("f32", 1) },
        ({ to }) => CudaKernel.launch(kernel, one, [to, pair, both, halves, any])
      )
      yield* refuses(
        CudaGraph.recordWith(
          { to: CudaGraph.buffer(4) },
          ({ to }) => CudaKernel.launch(kernel, one, [forced(to), pair, both, halves, any])
        ),
        "arguments[0]"
      )
      const exec = yield* CudaGraph.instantiate(graph)
      const to = yield* CudaMemory.array("f32", 1)
      yield* CudaGraph.launch(exec, { to })
      if (isSimulated) assert.deepStrictEqual(yield* CudaMemory.toArray(to), Float32Array.of(111))
    })))
})

describe("on a simulated device", () => {
  const run = <A, E>(body: Effect.Effect<A, E, CudaRuntime.CudaRuntime | Scope.Scope>) =>
    body.pipe(Effect.scoped, Effect.provide(simulated))

  it.live("a kernel's own types are known: others are refused, and none is enough", () =>
    run(Effect.gen(function*() {
      const module = yield* CudaModule.load(yield* program)
      const [to, pair, both, maybe, any] = parameters
      const get = (...kinds: ReadonlyArray<CudaParameter.ParameterKind>) => CudaKernel.get(module, "mixed", kinds)
      const wrong = yield* failsWith(get(outputOf("f64"), pair, both, maybe, any), "InvalidArgument")
      assert.deepInclude(wrong, { argument: "parameters[0]", value: "output of f64" })
      assert.include(wrong.expected, "output of f32")
      yield* refuses(get(to, pair, array(pointerOf("u64"), 2), maybe, any), "parameters[2][]")
      const kernel = yield* get(pointer, pair, array(pointer, 2), nullable(pointer), pointerOf("u8"))
      assert.lengthOf(kernel.parameters, 5)
    })))

  it.live("functions of libraries take arrays of their types, and get typed arrays", () =>
    run(Effect.gen(function*() {
      const library = yield* CudaLibrary.load(CudaLibrary.define({
        name: "typed",
        files: () => ["libtyped.so"],
        wheels: [],
        statuses: {},
        functions: {
          scale: CudaLibrary.func(
            [outputOf("f32"), CudaLibrary.nullable(inputOf("i32")), i32, CudaLibrary.stream],
            { simulate: (to, from, by) => void to.set(Array.from(from ?? [1], (value) => value * by)) }
          )
        }
      }))
      const scale = (to: unknown, from: unknown) =>
        CudaLibrary.call(library, "scale", [forced<CudaMemory.DeviceArray<"f32">>(to), forced<null>(from), 3])
      const to = yield* CudaMemory.fromArray(new Float32Array(4))
      const from = yield* CudaMemory.fromArray(Int32Array.of(1, 2, 3))
      yield* scale(CudaMemory.elements(to, 1), from)
      assert.deepStrictEqual(yield* CudaMemory.toArray(to), Float32Array.of(0, 3, 6, 9))
      yield* scale(to, null)
      assert.deepStrictEqual(yield* CudaMemory.toArray(to), Float32Array.of(3, 3, 6, 9))
      yield* refuses(scale(from, from), "arguments[0]")
      yield* refuses(scale(to, to), "arguments[1]")
      yield* refuses(scale(yield* CudaMemory.allocate(16), from), "arguments[0]")
      yield* refuses(scale(null, from), "arguments[0]")
    })))

  it.live.prop(
    "every type returns any bits, and elements are those of the array",
    [
      Schema.Literals(["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f16", "bf16", "f32", "f64"]),
      Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 }))),
      Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 63 })),
      Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 64 }))
    ],
    ([type, drawn, from, count]) =>
      run(Effect.gen(function*() {
        const bytes = Uint8Array.from(
          { length: 64 * 8 },
          (_, index) => drawn[index % (drawn.length || 1)] ?? index & 255
        )
        const whole = yield* CudaMemory.fromArray(bytes, { type })
        const read = yield* CudaMemory.toArray(whole)
        assert.strictEqual(whole.length * read.BYTES_PER_ELEMENT, bytes.length)
        assert.deepStrictEqual(new Uint8Array(read.buffer), bytes)
        const length = Math.min(count, 64 - from)
        const part = yield* CudaMemory.toArray(whole.pipe(CudaMemory.elements(from), CudaMemory.elements(0, length)))
        assert.strictEqual(part.length, length)
        const start = from * read.BYTES_PER_ELEMENT
        assert.deepStrictEqual(new Uint8Array(part.buffer), bytes.slice(start, start + part.byteLength))
        const target = yield* CudaMemory.array(type, length)
        yield* CudaMemory.copy(target, CudaMemory.elements(whole, from, length))
        assert.deepStrictEqual<unknown>(yield* CudaMemory.toArray(target), part)
      })),
    { arbitrary: { runs: 100 } }
  )
})

describe("kinds of pointers", () => {
  it("keep their element type, and refuse an unknown one", () => {
    assert.deepStrictEqual({ ...nullable(inputOf("f16")) }, {
      kind: "pointer",
      size: 8,
      align: 8,
      access: "read",
      nullable: true,
      element: "f16"
    })
    assert.strictEqual(CudaLibrary.nullable(outputOf("u8")).element, "u8")
    assert.isUndefined(nullable(pointer).element)
    for (const make of [inputOf, outputOf, pointerOf]) {
      assert.throws(() => make(forced<"f32">("bool")), RangeError, "expected one of i8")
    }
  })

  it.live("with an unknown type are refused", () =>
    Effect.gen(function*() {
      const module = yield* CudaModule.load(yield* program)
      const wrong = forced<typeof pointer>({ ...inputOf("f32"), element: "float" })
      yield* refuses(CudaKernel.get(module, "mixed", [wrong, u32]), "parameters")
    }).pipe(Effect.scoped, Effect.provide(simulated)))
})
