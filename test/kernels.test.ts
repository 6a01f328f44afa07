/**
 * Kernels: types, the conversion of arguments to bytes, and kernels of simulated devices: their arguments, their cost, and their
 * faults.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaKernel, CudaMemory, CudaModule, CudaParameter, CudaProgram, CudaStream } from "effect-cuda"
import type { CudaError } from "effect-cuda/CudaError"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { execFileSync } from "node:child_process"
import { mkdtempSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { scalarReaders, scalarSizes, scalarWriters } from "../src/cuda/parameters.ts"
import type { ParameterKind, ScalarName } from "../src/cuda/parameters.ts"
import { failsWith, refuses } from "./support/assertions.ts"
import { checkedMachine } from "./support/checkedMachine.ts"
import { program } from "./support/kernels.ts"

interface Given {
  readonly kernel: CudaKernel.CudaKernel<
    readonly [
      typeof CudaParameter.pointer,
      CudaParameter.PointerKind<true>,
      typeof CudaParameter.i32,
      typeof CudaParameter.u64,
      typeof CudaParameter.bool,
      CudaParameter.StructKind<{ readonly x: typeof CudaParameter.f32; readonly to: typeof CudaParameter.input }>,
      CudaParameter.ArrayKind<typeof CudaParameter.f64>
    ]
  >
  readonly device: CudaMemory.DeviceBuffer
  readonly host: CudaMemory.HostBuffer
  readonly stream: CudaStream.CudaStream
  readonly module: CudaModule.CudaModule
}

const config = { grid: 1, block: 1 }

/** Launches that must compile. */
export const accepted = ({ device, host, kernel, module, stream }: Given) => {
  const part = CudaMemory.slice(device, 8)
  const operations: ReadonlyArray<Effect.Effect<void, CudaError>> = [
    CudaKernel.launch(kernel, config, [device, null, 1, 1n, true, { x: 1, to: part }, [1, 2]]),
    CudaKernel.launch(kernel, config, [part, host, 1, 1, false, { x: 1, to: device }, Float64Array.of(1)], stream),
    CudaKernel.launch(kernel, { grid: [1, 2, 3], block: [1, 2], cluster: 2 }, [
      ...[CudaParameter.address(64), CudaMemory.slice(host, 0), 1, 1, false, {
        x: 1,
        to: CudaParameter.address(8)
      }] as const,
      []
    ])
  ]
  const kernels: Effect.Effect<
    CudaKernel.CudaKernel<readonly [CudaParameter.PointerKind<false>, CudaParameter.ScalarKind<"i32">]>,
    CudaError
  > = CudaKernel.get(module, "add", [CudaParameter.pointer, CudaParameter.i32])
  return { operations, kernels }
}

/** Launches that must not compile. */
export const refused = ({ device, kernel, stream }: Given) => {
  const rest = [1n, true, { x: 1, to: device }, [1]] as const
  return [
    // @ts-expect-error an argument is missing
    CudaKernel.launch(kernel, config, [device, null, 1, 1n, true, { x: 1, to: device }]),
    // @ts-expect-error there is one argument too many
    CudaKernel.launch(kernel, config, [device, null, 1, ...rest, 1]),
    // @ts-expect-error a pointer is not a number
    CudaKernel.launch(kernel, config, [1, null, 1, ...rest]),
    // @ts-expect-error this pointer is not nullable
    CudaKernel.launch(kernel, config, [null, null, 1, ...rest]),
    // @ts-expect-error 32-bit integers are numbers
    CudaKernel.launch(kernel, config, [device, null, 1n, ...rest]),
    // @ts-expect-error a number is not a boolean
    CudaKernel.launch(kernel, config, [device, null, 1, 1n, 1, { x: 1, to: device }, [1]]),
    // @ts-expect-error a field is missing
    CudaKernel.launch(kernel, config, [device, null, 1, 1n, true, { x: 1 }, [1]]),
    // @ts-expect-error a field is of another kind
    CudaKernel.launch(kernel, config, [device, null, 1, 1n, true, { x: device, to: device }, [1]]),
    // @ts-expect-error the elements are numbers
    CudaKernel.launch(kernel, config, [device, null, 1, 1n, true, { x: 1, to: device }, [true]]),
    // @ts-expect-error an array is not an element
    CudaKernel.launch(kernel, config, [device, null, 1, 1n, true, { x: 1, to: device }, 1]),
    // @ts-expect-error the address of a buffer is not an argument
    CudaKernel.launch(kernel, config, [device.address, null, 1, ...rest]),
    // @ts-expect-error a launch has a grid and blocks
    CudaKernel.launch(kernel, { grid: 1 }, [device, null, 1, ...rest]),
    // @ts-expect-error only pointers are nullable
    CudaParameter.nullable(CudaParameter.i32),
    // @ts-expect-error not every attribute can be set
    CudaKernel.setAttribute(kernel, "numRegs", 1),
    // @ts-expect-error counting clusters needs a launch with clusters
    CudaKernel.activeClusters(kernel, config),
    // @ts-expect-error a stream is not an argument
    CudaKernel.launch(kernel, config, [stream, null, 1, ...rest])
  ]
}

const roundTrip = (name: ScalarName, value: unknown) => {
  const view = new DataView(new ArrayBuffer(8))
  const written = scalarWriters[name](view, 0)(value)
  return written ? scalarReaders[name](view, 0) : "refused"
}

describe("numbers as bytes", () => {
  const integers = ["i8", "u8", "i16", "u16", "i32", "u32"] as const

  it("accept integers in range, and reject others", () => {
    for (const name of integers) {
      const bits = 8 * scalarSizes[name]
      const [least, most] = name.startsWith("u") ? [0, 2 ** bits - 1] : [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]
      for (const value of [least, most, 0, 1]) assert.strictEqual(roundTrip(name, value), value)
      for (const value of [least - 1, most + 1, 0.5, NaN, Infinity, "1", 1n, null, undefined, true]) {
        assert.strictEqual(roundTrip(name, value), "refused", `${name} ${String(value)}`)
      }
    }
  })

  it("accept 64-bit integers as bigint and as number", () => {
    for (const value of [0, 1, -1, 2 ** 32, -(2 ** 32), 2 ** 32 - 1, -(2 ** 40) - 7, ...safe]) {
      assert.strictEqual(roundTrip("i64", value), BigInt(value))
      assert.strictEqual(roundTrip("i64", BigInt(value)), BigInt(value))
      assert.strictEqual(roundTrip("u64", value), value < 0 ? "refused" : BigInt(value))
    }
    assert.strictEqual(roundTrip("i64", -(2n ** 63n)), -(2n ** 63n))
    assert.strictEqual(roundTrip("u64", 2n ** 64n - 1n), 2n ** 64n - 1n)
    for (const value of [2n ** 63n, -(2n ** 63n) - 1n, 2 ** 53, 0.5]) {
      assert.strictEqual(roundTrip("i64", value), "refused")
    }
    for (const value of [2n ** 64n, -1n, -1]) assert.strictEqual(roundTrip("u64", value), "refused")
  })

  const safe = [Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER]

  for (const name of ["f16", "bf16"] as const) {
    const all = Array.from({ length: 0x10000 }, (_, bits) => {
      const view = new DataView(new ArrayBuffer(2))
      view.setUint16(0, bits, true)
      return scalarReaders[name](view, 0)
    })

    it(`${name}: every 16-bit value survives a round trip`, () => {
      for (const [bits, value] of all.entries()) {
        const view = new DataView(new ArrayBuffer(2))
        assert.isTrue(scalarWriters[name](view, 0)(value))
        const written = view.getUint16(0, true)
        if (Number.isNaN(value)) assert.isTrue(Number.isNaN(all[written]))
        else assert.strictEqual(written, bits)
      }
    })

    it(`${name}: other numbers are rounded to nearest, ties to even`, () => {
      const finite = all.slice(0, 0x8000).filter(Number.isFinite)
      const largest = finite.at(-1)!
      for (let index = 0; index + 1 < finite.length; index += 7) {
        const [low, high] = [finite[index]!, finite[index + 1]!]
        const middle = (low + high) / 2
        assert.strictEqual(roundTrip(name, middle), index % 2 === 0 ? low : high)
        assert.strictEqual(roundTrip(name, middle - (high - low) / 1024), low)
        assert.strictEqual(roundTrip(name, -middle - (high - low) / 1024), -high)
      }
      const step = largest - finite.at(-2)!
      assert.strictEqual(roundTrip(name, largest + step / 2 - step / 1024), largest)
      assert.strictEqual(roundTrip(name, largest + step / 2), Infinity)
      assert.strictEqual(roundTrip(name, -Infinity), -Infinity)
      assert.strictEqual(Object.is(roundTrip(name, -0), -0), true)
      assert.strictEqual(roundTrip(name, Number.MIN_VALUE), 0)
    })
  }
})

describe("layouts", () => {
  const names: Readonly<Record<string, ParameterKind>> = {
    "signed char": CudaParameter.i8,
    "unsigned short": CudaParameter.u16,
    "int": CudaParameter.i32,
    "long long": CudaParameter.i64,
    "float": CudaParameter.f32,
    "double": CudaParameter.f64,
    "_Bool": CudaParameter.bool,
    "void *": CudaParameter.pointer
  }

  /** A C type with its kind. */
  interface Type {
    readonly declare: (name: string) => string
    readonly kind: ParameterKind
  }

  const scalars = Object.entries(names).map(([type, kind]): Type => ({ declare: (name) => `${type} ${name}`, kind }))

  const structOf = (fields: ReadonlyArray<Type>, align: number): Type => ({
    declare: (name) =>
      `struct { ${fields.map(({ declare }, index) => `${declare(`f${index}`)};`).join(" ")} } ` +
      `${align > 1 ? `__attribute__((aligned(${align}))) ` : ""}${name}`,
    kind: CudaParameter.struct(Object.fromEntries(fields.map(({ kind }, index) => [`f${index}`, kind])), { align })
  })

  const arrayOf = (element: Type, length: number): Type => ({
    declare: (name) => element.declare(`${name}[${length}]`),
    kind: CudaParameter.array(element.kind, length)
  })

  /** A reproducible sequence of pseudorandom non-negative integers. */
  const makeRandom = () => {
    let state = 12345
    return (below: number): number => {
      state = (Math.imul(state, 1_103_515_245) + 12345) >>> 0
      return Math.floor(state / 2 ** 32 * below)
    }
  }

  const random = makeRandom()
  const typesOf = (count: number, depth: number) => Array.from({ length: count }, () => makeType(depth))
  const makeType = (depth: number): Type => {
    const choice = depth === 0 ? 0 : random(4)
    if (choice === 1) return arrayOf(makeType(depth - 1), 1 + random(5))
    return choice === 2 ? structOf(typesOf(1 + random(6), depth - 1), 1) : scalars[random(scalars.length)]!
  }

  it("of structs and arrays match the C compiler's", () => {
    const types = Array.from({ length: 200 }, () => {
      const fields = typesOf(1 + random(8), 2)
      return { fields, type: structOf(fields, random(4) === 0 ? 16 : 1) }
    })
    const source = [
      "#include <stddef.h>\n#include <stdio.h>\nint main(void) {",
      ...types.flatMap(({ fields, type }, index) => [
        `${type.declare(`s${index}`)};`,
        `printf("%zu %zu", sizeof s${index}, (size_t)__alignof__(s${index}));`,
        ...fields.map((_, field) => `printf(" %zu", (size_t)((char *)&s${index}.f${field} - (char *)&s${index}));`),
        `puts("");`
      ]),
      "}"
    ]
    const folder = mkdtempSync(join(tmpdir(), "effect-cuda-layout-"))
    writeFileSync(join(folder, "layout.c"), source.join("\n"))
    execFileSync("cc", ["-w", "-o", join(folder, "layout"), join(folder, "layout.c")])
    const lines = execFileSync(join(folder, "layout"), { encoding: "utf8" }).trim().split("\n")
    for (const [index, { type: { kind } }] of types.entries()) {
      const offsets = kind.kind === "struct" ? Object.values(kind.offsets) : []
      assert.strictEqual([kind.size, kind.align, ...offsets].join(" "), lines[index])
    }
  })

  it("that are invalid are rejected", () => {
    assert.throws(() => CudaParameter.struct({}), RangeError)
    assert.throws(() => CudaParameter.struct({ 1: CudaParameter.i8, a: CudaParameter.i8 }), RangeError)
    assert.throws(() => CudaParameter.struct({ a: CudaParameter.i8 }, { align: 3 }), RangeError)
    assert.throws(() => CudaParameter.struct({ a: CudaParameter.i8 }, { align: 0.5 }), RangeError)
    for (const length of [0, -1, 1.5, NaN]) {
      assert.throws(() => CudaParameter.array(CudaParameter.i8, length), RangeError)
    }
  })
})

/** Runs a program on a simulated device with these kernels, with the test's clock. */
/** On a machine on which races fail. */
const simulated = (
  kernels: Readonly<Record<string, SimulatedRuntime.SimulatedKernel>>,
  options: SimulatedRuntime.SimulatedOptions = {}
) =>
<A, E>(effect: Effect.Effect<A, E, CudaRuntime | SimulatedRuntime.SimulatedControl | Scope.Scope>) =>
  Effect.provide(Effect.scoped(effect), Layer.fresh(checkedMachine(SimulatedRuntime.layer({ ...options, kernels }))))

const get = <const Parameters extends ReadonlyArray<ParameterKind>>(name: string, parameters: Parameters) =>
  Effect.flatMap(
    Effect.flatMap(program, (made) => CudaModule.load(made)),
    (module) => CudaKernel.get(module, name, parameters)
  )

describe("kernels of simulated devices", () => {
  const { input, pointer, u32 } = CudaParameter
  const store = SimulatedRuntime.kernel({
    parameters: [pointer, u32],
    cost: "3 millis",
    run: ({ args: [to, value] }) => to.store("u32", 0, value)
  })

  it.effect("run at the end of their cost", () =>
    simulated({ store })(Effect.gen(function*() {
      const control = yield* SimulatedRuntime.SimulatedControl
      const kernel = yield* get("store", store.parameters)
      const stream = yield* CudaStream.make()
      const to = yield* CudaMemory.allocate(4)
      yield* CudaKernel.launch(kernel, config, [to, 7], stream)
      yield* TestClock.adjust("2999 micros")
      assert.isFalse(yield* CudaStream.query(stream))
      assert.strictEqual((yield* control.bytes(to))[0], 0)
      yield* TestClock.adjust("1 micros")
      assert.isTrue(yield* CudaStream.query(stream))
      assert.strictEqual((yield* control.bytes(to))[0], 7)
    })))

  it.effect("may have costs that depend on the launch, and hang with an infinite cost", () => {
    const sized = SimulatedRuntime.kernel({
      parameters: [],
      cost: ({ block, grid }) => grid.x * block.x * 10 ** 3,
      run: () => {}
    })
    const hanging = SimulatedRuntime.kernel({ parameters: [], cost: Infinity, run: () => {} })
    return simulated({ sized, hanging })(Effect.gen(function*() {
      const [first, second] = yield* Effect.all([get("sized", []), get("hanging", [])])
      const stream = yield* CudaStream.make()
      yield* CudaKernel.launch(first, { grid: 2, block: 3 }, [], stream)
      yield* TestClock.adjust("5999 millis")
      assert.isFalse(yield* CudaStream.query(stream))
      yield* TestClock.adjust("6001 millis")
      assert.isTrue(yield* CudaStream.query(stream))
      yield* CudaKernel.launch(second, config, [], stream)
      yield* failsWith(CudaStream.synchronize(stream), "NeverFinishes")
    }))
  })

  it.effect("receive the arguments of their own launch, despite later launches", () => {
    const seen: Array<unknown> = []
    const record = CudaParameter.struct({ at: pointer, n: u32 })
    const look = SimulatedRuntime.kernel({
      parameters: [record, CudaParameter.array(u32, 2), CudaParameter.nullable(pointer)],
      cost: "1 millis",
      run: ({ args: [{ at, n }, pair, none], grid }) =>
        seen.push([at.load("u32", 0), n, pair, none?.byteLength, grid.x])
    })
    return simulated({ look })(Effect.gen(function*() {
      const kernel = yield* get("look", look.parameters)
      const [stream, other] = yield* Effect.all([CudaStream.make(), CudaStream.make()])
      const [one, two] = yield* Effect.all([CudaMemory.allocate(4), CudaMemory.allocate(8)])
      yield* CudaMemory.fill(one, 1, stream)
      yield* CudaMemory.fill(two, 2, other)
      yield* CudaKernel.launch(kernel, { grid: 5, block: 1 }, [{ at: one, n: 3 }, [4, 5], null], stream)
      yield* CudaKernel.launch(kernel, { grid: 6, block: 1 }, [{ at: two, n: 7 }, [8, 9], two], other)
      yield* TestClock.adjust("10 millis")
      yield* Effect.all([CudaStream.synchronize(stream), CudaStream.synchronize(other)])
      assert.sameDeepMembers(seen, [[0x01010101, 3, [4, 5], undefined, 5], [0x02020202, 7, [8, 9], 8, 6]])
    }))
  })

  it.effect("can access the whole buffer through a slice, and addresses that the program computes", () => {
    const sum = SimulatedRuntime.kernel({
      parameters: [pointer, input],
      cost: 0,
      run: ({ args: [to, from] }) => {
        assert.strictEqual(from.byteLength, 8)
        assert.deepStrictEqual([...from.view(Uint32Array)], [2, 3])
        to.store("u32", 0, from.load("u32", -1) + from.load("u32", 2))
      }
    })
    return simulated({ sum })(Effect.gen(function*() {
      const kernel = yield* get("sum", sum.parameters)
      const stream = yield* CudaStream.make()
      const [to, from] = yield* Effect.all([CudaMemory.allocate(8), CudaMemory.allocate(16)])
      const control = yield* SimulatedRuntime.SimulatedControl
      new Uint32Array((yield* control.bytes(from)).buffer).set([1, 2, 3, 40])
      const target = CudaParameter.address(to.address + 4)
      yield* CudaKernel.launch(kernel, config, [target, CudaMemory.slice(from, 4, 8)], stream)
      yield* CudaStream.synchronize(stream)
      assert.deepStrictEqual([...(yield* control.bytes(to))], [0, 0, 0, 0, 41, 0, 0, 0])
    }))
  })

  const faults: Readonly<
    Record<string, readonly [SimulatedRuntime.SimulatedKernel<[CudaParameter.PointerKind<false>]>["run"], string]>
  > = {
    "reading beyond the buffer": [({ args: [to] }) => to.load("u32", 4), "IllegalAddress"],
    "writing before the buffer": [({ args: [to] }) => to.store("u8", -1, 0), "IllegalAddress"],
    "a view beyond the buffer": [({ args: [to] }) => to.view(Uint8Array, 17), "IllegalAddress"],
    "a view that is not aligned": [({ args: [to] }) => to.view(Float64Array, 1), "MisalignedAddress"],
    "an assertion": [({ assert }) => assert(false), "Assert"],
    "a time limit": [({ fault }) => fault("LaunchTimeout"), "LaunchTimeout"],
    "a status that is not sticky": [({ fault }) => fault("OutOfMemory"), "LaunchFailed"],
    "a missing variable": [({ global }) => global("missing"), "LaunchFailed"],
    "a value that does not fit": [({ args: [to] }) => to.store("u8", 0, 256), "LaunchFailed"],
    "an exception": [() => {
      throw new Error("a mistake")
    }, "LaunchFailed"]
  }

  for (const [name, [run, status]] of Object.entries(faults)) {
    it.effect(`${name} ends the context with ${status}`, () => {
      const faulty = SimulatedRuntime.kernel({ parameters: [pointer], cost: "1 millis", run })
      return simulated({ faulty })(Effect.gen(function*() {
        const kernel = yield* get("faulty", [pointer])
        const stream = yield* CudaStream.make()
        const to = yield* CudaMemory.allocate(16)
        const part = CudaMemory.slice(to, name.includes("aligned") ? 4 : 0)
        yield* CudaKernel.launch(kernel, config, [part], stream)
        yield* TestClock.adjust("1 millis")
        const first = yield* Effect.flip(CudaStream.query(stream))
        assert.strictEqual(first.reason._tag, status)
        assert.isTrue(first.isSticky)
        const later = yield* Effect.flip(CudaKernel.launch(kernel, config, [part], stream))
        assert.deepStrictEqual([later.reason._tag, later.origin?.operation], [status, "CudaStream.query"])
        yield* failsWith(get("faulty", [pointer]), first.reason._tag)
      }))
    })
  }

  describe("that end in a fault", () => {
    const to = [pointer] as const
    type Run = SimulatedRuntime.SimulatedKernel<typeof to>["run"]
    const mistake = new RangeError("a mistake")
    const accesses: ReadonlyArray<readonly [Run, says: string]> = [
      [
        ({ args: [to] }) => to.load("u32", 4),
        "IllegalAddress: load of bytes 16 to 20 of arguments[0], whose buffer spans bytes -4 to 12."
      ],
      [
        ({ args: [to] }) => to.store("u8", -5, 0),
        "IllegalAddress: store of bytes -5 to -4 of arguments[0], whose buffer spans bytes -4 to 12."
      ],
      [
        ({ args: [to] }) => to.view(Uint8Array, 17),
        "IllegalAddress: view of bytes 0 to 17 of arguments[0], whose buffer spans bytes -4 to 12."
      ],
      [({ args: [to] }) => to.view(Float64Array, 1), "MisalignedAddress: view at byte 0 of arguments[0], address 0x"],
      [
        ({ global }) => global("missing"),
        "LaunchFailed: there is no global variable missing. The device is simulated: its modules have the global variables counter."
      ],
      [
        ({ global }) => global("counter").load("u32", 1),
        "IllegalAddress: load of bytes 4 to 8 of global variable counter, whose buffer spans bytes 0 to 4."
      ],
      [({ assert }) => assert(false), "Assert."],
      [({ fault }) => fault("OutOfMemory"), "LaunchFailed: OutOfMemory is not a sticky status."]
    ]
    for (const [run, says] of accesses) {
      it.effect(`report the access: ${says}`, () => {
        const faulty = SimulatedRuntime.kernel({ parameters: to, cost: 0, run })
        return simulated({ faulty }, { globals: { counter: 4 } })(Effect.gen(function*() {
          const kernel = yield* get("faulty", to)
          const stream = yield* CudaStream.make()
          const buffer = yield* CudaMemory.allocate(16)
          yield* CudaKernel.launch(kernel, config, [CudaMemory.slice(buffer, 4)], stream)
          const error = yield* Effect.flip(CudaStream.query(stream))
          assert.include(error.message, `Kernel faulty ended in ${says}`)
          const later = yield* Effect.flip(CudaMemory.allocate(4))
          assert.strictEqual(later.detail, error.detail)
          assert.include(later.message, "earlier: CudaStream.query failed")
        }))
      })
    }

    it.effect("name the struct field or array element of the pointer, and the computed address", () => {
      const record = CudaParameter.struct({ n: u32, at: pointer })
      const seen: Array<string> = []
      const reach = SimulatedRuntime.kernel({
        parameters: [record, CudaParameter.array(pointer, 2), pointer],
        cost: 0,
        run: ({ args: [{ at }, [, second], nowhere] }) => {
          for (const each of [at, second!, nowhere]) {
            try {
              each.load("u64", 1)
            } catch (error) {
              seen.push(String(error))
            }
          }
        }
      })
      return simulated({ reach })(Effect.gen(function*() {
        const named = CudaParameter.struct({ count: u32, to: pointer })
        const kernel = yield* get("reach", [named, CudaParameter.array(pointer, 2), pointer])
        const stream = yield* CudaStream.make()
        const buffer = yield* CudaMemory.allocate(8)
        const args = [{ count: 1, to: buffer }, [buffer, buffer], CudaParameter.address(64)] as const
        yield* CudaKernel.launch(kernel, config, args, stream)
        assert.isTrue(yield* CudaStream.query(stream))
        assert.deepStrictEqual(seen, [
          "Error: IllegalAddress: load of bytes 8 to 16 of arguments[0].at, whose buffer spans bytes 0 to 8",
          "Error: IllegalAddress: load of bytes 8 to 16 of arguments[1][1], whose buffer spans bytes 0 to 8",
          "Error: IllegalAddress: load of bytes 8 to 16 of arguments[2], but no buffer is at 0x40"
        ])
      }))
    })

    it.effect("by an exception have it as the cause of all later failures", () => {
      const faulty = SimulatedRuntime.kernel({
        parameters: [],
        cost: 0,
        run: () => {
          throw mistake
        }
      })
      return simulated({ faulty }, { devices: 2 })(Effect.gen(function*() {
        const kernel = yield* get("faulty", [])
        const stream = yield* CudaStream.make()
        const far = yield* CudaStream.make({ device: 1 })
        yield* CudaKernel.launch(kernel, config, [], stream)
        for (const operation of [CudaStream.synchronize(stream), CudaStream.query(far), CudaStream.make()]) {
          const error = yield* Effect.flip(operation)
          assert.strictEqual(error.reason._tag, "LaunchFailed")
          assert.strictEqual(error.cause, mistake)
          assert.strictEqual(error.detail, "Kernel faulty threw RangeError: a mistake.")
          assert.include(error.message, "Kernel faulty threw RangeError: a mistake.")
        }
      }))
    })

    it.effect("while computing the cost fail the launch", () => {
      const costs: ReadonlyArray<readonly [() => number, says: string]> = [
        [() => {
          throw mistake
        }, "The cost of kernel faulty threw RangeError: a mistake."],
        [() => -1, "The cost of kernel faulty threw RangeError: expected a non-negative duration."]
      ]
      return Effect.forEach(costs, ([cost, says]) => {
        const faulty = SimulatedRuntime.kernel({ parameters: [], cost, run: () => {} })
        return simulated({ faulty })(Effect.gen(function*() {
          const kernel = yield* get("faulty", [])
          const stream = yield* CudaStream.make()
          const error = yield* Effect.flip(CudaKernel.launch(kernel, config, [], stream))
          assert.strictEqual(error.reason._tag, "LaunchFailed")
          assert.include(error.message, says)
          yield* failsWith(CudaStream.query(stream), "LaunchFailed")
        }))
      })
    })

    it.effect("by storing a value of the wrong kind name the element", () => {
      const faulty = SimulatedRuntime.kernel({
        parameters: to,
        cost: 0,
        run: ({ args: [to] }) => to.store("u8", 2, 256)
      })
      return simulated({ faulty })(Effect.gen(function*() {
        const kernel = yield* get("faulty", to)
        const stream = yield* CudaStream.make()
        yield* CudaKernel.launch(kernel, config, [yield* CudaMemory.allocate(4)], stream)
        const error = yield* Effect.flip(CudaStream.query(stream))
        assert.include(error.message, "Kernel faulty threw TypeError: 256 is not a u8, for element 2 of arguments[0].")
      }))
    })

    for (const thrown of ["a text", undefined, Object.create(null)]) {
      it.effect(`by throwing a ${typeof thrown} have that as the cause`, () =>
        simulated({})(Effect.gen(function*() {
          const control = yield* SimulatedRuntime.SimulatedControl
          const stream = yield* CudaStream.make()
          const run = () => {
            throw thrown
          }
          yield* control.launch(stream, { duration: 0, run })
          const error = yield* Effect.flip(CudaStream.query(stream))
          assert.strictEqual(error.cause, thrown)
          assert.match(
            error.message,
            /Work on stream \d+ of device 0 threw (a text|undefined|a value that cannot be printed)\./
          )
        })))
    }

    it.effect("include a returned promise, because nothing awaits it", () => {
      const faulty = SimulatedRuntime.kernel({
        parameters: [],
        cost: 0,
        run: async () => {
          throw mistake
        }
      })
      return simulated({ faulty })(Effect.gen(function*() {
        const kernel = yield* get("faulty", [])
        const stream = yield* CudaStream.make()
        yield* CudaKernel.launch(kernel, config, [], stream)
        const error = yield* Effect.flip(CudaStream.query(stream))
        assert.strictEqual(error.reason._tag, "LaunchFailed")
        assert.include(error.message, "Kernel faulty threw TypeError: it returned a promise")
      }))
    })

    it.effect("injected through the control do not blame a kernel", () =>
      simulated({})(Effect.gen(function*() {
        const control = yield* SimulatedRuntime.SimulatedControl
        const stream = yield* CudaStream.make()
        yield* control.launch(stream, { duration: 0, fault: "LaunchFailed" })
        const error = yield* Effect.flip(CudaStream.query(stream))
        assert.deepStrictEqual([error.detail, error.cause], [undefined, undefined])
      })))
  })

  it.effect("have parameter kinds, which are compared with the declared ones", () => {
    const { array, f32, f64, i32, output, struct, u64 } = CudaParameter
    const vector = struct({ x: f32, y: f32 })
    const typed = SimulatedRuntime.kernel({
      parameters: [pointer, input, i32, vector, array(vector, 2)],
      run: () => {}
    })
    return simulated({ typed })(Effect.gen(function*() {
      const own = typed.parameters
      const instead = (index: number, kind: ParameterKind) =>
        get("typed", own.map((parameter, other) => other === index ? kind : parameter))
      yield* get("typed", own)
      const error = yield* Effect.flip(instead(2, f32))
      assert.include(error.message, "parameters[2] is f32; expected i32, as kernel typed declares")
      yield* refuses(instead(2, u32), "parameters[2]")
      yield* refuses(instead(0, input), "parameters[0]")
      yield* refuses(instead(0, u64), "parameters[0]")
      yield* refuses(instead(3, f64), "parameters[3]")
      yield* refuses(instead(3, array(f32, 2)), "parameters[3]")
      yield* refuses(instead(3, struct({ x: f32, y: u32 })), "parameters[3].y")
      yield* refuses(instead(3, struct({ x: f64 })), "parameters[3]")
      yield* refuses(instead(3, struct({ x: f32, y: CudaParameter.u16 })), "parameters[3].y")
      yield* refuses(instead(4, array(f32, 4)), "parameters[4]")
      yield* refuses(instead(4, array(struct({ x: f32, y: i32 }), 2)), "parameters[4][].y")
      yield* instead(0, output)
      yield* instead(1, pointer)
      yield* instead(1, CudaParameter.nullable(input))
      yield* instead(3, struct({ re: f32, im: f32 }))
    }))
  })

  it.effect("fault when they dereference null for a pointer that is not nullable", () => {
    const follow = SimulatedRuntime.kernel({
      parameters: [pointer],
      cost: 0,
      run: ({ args: [to] }) => to.store("u8", 0, 1)
    })
    return simulated({ follow })(Effect.gen(function*() {
      const kernel = yield* get("follow", [CudaParameter.nullable(pointer)])
      const stream = yield* CudaStream.make()
      yield* CudaKernel.launch(kernel, config, [null], stream)
      const error = yield* Effect.flip(CudaStream.query(stream))
      assert.strictEqual(error.reason._tag, "IllegalAddress")
      assert.include(error.message, "store of bytes 0 to 1 of arguments[0], but no buffer is at 0x0")
    }))
  })

  it.effect("are not launched if a block exceeds the resources of a multiprocessor", () => {
    const many = SimulatedRuntime.kernel({ parameters: [], attributes: { numRegs: 255 }, cost: 0, run: () => {} })
    return simulated({ many })(Effect.gen(function*() {
      const kernel = yield* get("many", [])
      const launch = (block: number) => CudaKernel.launch(kernel, { grid: 1, block }, [])
      yield* launch(256)
      assert.strictEqual((yield* failsWith(launch(512), "LaunchOutOfResources")).code, 701)
    }))
  })

  it.effect("are launched in clusters and cooperatively within the limits of the device", () => {
    const multiprocessorCount = 4
    const wide = SimulatedRuntime.kernel({ parameters: [], cost: 0, run: () => {} })
    return simulated({ wide }, { devices: [{ attributes: { multiprocessorCount } }] })(Effect.gen(function*() {
      const kernel = yield* get("wide", [])
      const launch = (sizes: CudaKernel.LaunchConfig) => CudaKernel.launch(kernel, sizes, [])
      yield* launch({ grid: 8, block: 1024, cluster: 8 })
      const alone = 200 * 1024
      yield* launch({ grid: 4, block: 1024, cluster: 4, sharedBytes: alone, cooperative: true })
      yield* failsWith(launch({ grid: 8, block: 1024, cluster: 8, sharedBytes: alone }), "InvalidClusterSize")
      yield* failsWith(
        launch({ grid: 6, block: 1024, cluster: 3, sharedBytes: alone, cooperative: true }),
        "CooperativeLaunchTooLarge"
      )
      const error = yield* Effect.flip(launch({ grid: 9, block: 1024, cooperative: true }))
      assert.include(error.message, "grid 9×1×1, block 1024×1×1, 0 bytes of shared memory, cooperative")
      const config = { grid: 16, block: 32, cluster: 16 }
      yield* failsWith(CudaKernel.activeClusters(kernel, config), "InvalidClusterSize")
      yield* CudaKernel.setAttribute(kernel, "nonPortableClusterSizeAllowed", 1)
      assert.strictEqual(yield* CudaKernel.activeClusters(kernel, config), 8)
      assert.strictEqual(yield* CudaKernel.maxClusterSize(kernel, config), 16)
      yield* launch(config)
    }))
  })

  it.effect("have no clusters on devices before compute capability 9.0", () => {
    const older = SimulatedRuntime.kernel({ parameters: [], run: () => {} })
    const computeCapability = { major: 8, minor: 6 }
    return simulated({ older }, { devices: [{ computeCapability }] })(Effect.gen(function*() {
      const kernel = yield* get("older", [])
      yield* refuses(CudaKernel.launch(kernel, { grid: 2, block: 1, cluster: 2 }, []), "cluster")
    }))
  })

  it.effect("that are not registered are not found, with a list of the registered ones", () =>
    simulated({ store, "scale<float>": store }, { globals: { counter: 4 } })(Effect.gen(function*() {
      const missing = yield* Effect.flip(get("add", []))
      assert.include(
        missing.message,
        "The device is simulated: its modules have the kernels store, scale<float>. " +
          "Add others with the option kernels of SimulatedRuntime."
      )
      const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
      const variable = yield* Effect.flip(CudaModule.global(module, "bias"))
      assert.include(
        variable.message,
        "The device is simulated: its modules have the global variables counter. " +
          "Add others with the option globals of SimulatedRuntime."
      )
    })))

  it.effect("are listed in failures, up to a limit", () =>
    Effect.gen(function*() {
      const many = Object.fromEntries(Array.from({ length: 23 }, (_, index) => [`kernel${index}`, store]))
      const crowded = yield* simulated(many)(Effect.flip(get("add", [])))
      assert.include(crowded.message, "kernel18, kernel19 and 3 more. Add others")
      const empty = yield* simulated({})(Effect.flip(get("add", [])))
      assert.include(empty.message, "its modules have no kernels. Add others")
    }))

  it.effect("are rejected if they are not registered or have other parameters", () =>
    simulated({ store })(Effect.gen(function*() {
      const module = yield* Effect.flatMap(program, (made) => CudaModule.load(made))
      yield* failsWith(CudaKernel.get(module, "add", []), "NotFound")
      yield* failsWith(CudaModule.global(module, "counter"), "NotFound")
      yield* refuses(CudaKernel.get(module, "store", [pointer]), "parameters")
      yield* refuses(CudaKernel.get(module, "store", [pointer, CudaParameter.u64]), "parameters[1]")
    })))

  it.effect("are found by the name expressions of a compiled program", () =>
    simulated({ "scale<float>": store })(Effect.gen(function*() {
      const compiled = yield* CudaProgram.compile("template …", { nameExpressions: ["scale<float>"] })
      const module = yield* CudaModule.load(compiled)
      assert.strictEqual((yield* CudaKernel.get(module, "scale<float>", store.parameters)).name, "scale<float>")
    })))

  it.effect("appear in the timeline as work", () =>
    simulated({ store }, { recordTimeline: true })(Effect.gen(function*() {
      const control = yield* SimulatedRuntime.SimulatedControl
      const kernel = yield* get("store", store.parameters)
      const stream = yield* CudaStream.make()
      const to = yield* CudaMemory.allocate(4)
      yield* CudaKernel.launch(kernel, config, [to, 1], stream)
      yield* TestClock.adjust("5 millis")
      yield* CudaStream.query(stream)
      const work = (yield* control.timeline).filter(({ kind }) => kind === "work")
      assert.deepStrictEqual(work.map(({ end, start }) => end - start), [3e6])
    })))

  it.effect("with invalid options are rejected when the runtime is created", () =>
    Effect.gen(function*() {
      const make = (options: SimulatedRuntime.SimulatedOptions) => Effect.scoped(SimulatedRuntime.make(options))
      yield* refuses(make({ kernels: { wrong: { ...store, cost: -1 } } }), "kernels.wrong.cost")
      yield* refuses(make({ globals: { wrong: 0 } }), "globals.wrong")
    }))
})

describe("parameter kinds", () => {
  const anything = [CudaParameter.i32] as const
  const large = [CudaParameter.array(CudaParameter.i8, 2 ** 31)] as const
  const runtime = SimulatedRuntime.layer({
    devices: [{ memory: 2 ** 20 }],
    kernels: {
      anything: SimulatedRuntime.kernel({ parameters: anything, run: () => {} }),
      large: SimulatedRuntime.kernel({ parameters: large, run: () => {} })
    }
  })
  const { i32 } = CudaParameter
  const pair = CudaParameter.struct({ x: i32, y: i32 })

  it.effect("whose layout is wrong are refused", () =>
    Effect.gen(function*() {
      const module = yield* CudaModule.load(yield* program)
      const wrong: ReadonlyArray<unknown> = [
        undefined,
        { kind: "toString", size: 4, align: 4 },
        { kind: "i32" },
        { ...i32, align: Number.NaN },
        { ...i32, align: 0 },
        { ...i32, align: -4 },
        { ...i32, size: 8 },
        { ...CudaParameter.pointer, size: 4 },
        { kind: "struct", size: 4, align: 4 },
        { ...pair, size: 2 ** 40 },
        { ...pair, align: 3 },
        { ...pair, offsets: { x: 0, y: 2 ** 20 } },
        { ...pair, fields: { x: i32, y: undefined } },
        { kind: "array", size: 4, align: 4 },
        { ...CudaParameter.array(i32, 2), length: 2 ** 40 },
        { ...CudaParameter.array(i32, 2), length: Number.NaN },
        { ...CudaParameter.array(i32, 2), element: CudaParameter.f64 }
      ]
      for (const kind of wrong) {
        yield* refuses(CudaKernel.get(module, "anything", [kind] as never), "parameters")
      }
      const hole: ReadonlyArray<never> = Object.assign([], { length: 1 })
      yield* refuses(CudaKernel.get(module, "anything", hole), "parameters")
      yield* CudaKernel.get(module, "anything", structuredClone(anything))
    }).pipe(Effect.scoped, Effect.provide(runtime)))

  it.effect("larger than any kernel accepts are refused before anything is made for them", () =>
    Effect.gen(function*() {
      const module = yield* CudaModule.load(yield* program)
      const { value } = yield* failsWith(CudaKernel.get(module, "large", large), "InvalidArgument")
      assert.strictEqual(value, "2147483648 bytes")
    }).pipe(Effect.scoped, Effect.provide(runtime)))
})

describe("handles", () => {
  it.effect("have details as JSON, and guards", () =>
    simulated({ nothing: SimulatedRuntime.kernel({ parameters: [CudaParameter.u32], cost: 0, run: () => {} }) })(
      Effect.gen(function*() {
        const kernel = yield* get("nothing", [CudaParameter.u32])
        const { module } = kernel
        assert.deepStrictEqual(kernel.toJSON(), {
          _id: "CudaKernel",
          name: "nothing",
          parameters: ["u32"],
          handle: kernel.handle
        })
        assert.deepStrictEqual(module.toJSON(), {
          _id: "CudaModule",
          program: "kernels.ptx",
          handle: module.handle,
          state: "live"
        })
        assert.deepStrictEqual(
          [CudaKernel.isCudaKernel(kernel), CudaModule.isCudaModule(module), CudaKernel.isCudaKernel(module)],
          [true, true, false]
        )
      })
    ))
})
