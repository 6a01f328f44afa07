/**
 * Exploration of orders: what each kind of race shows in its other order, and how programs end there.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CheckedRuntime,
  CudaBranch,
  CudaChecker,
  CudaDevice,
  CudaGraph,
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaParameter,
  CudaRuntime,
  CudaStream,
  SimulatedRuntime
} from "effect-cuda"
import type { CudaError } from "effect-cuda"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { refuses } from "../support/assertions.ts"
import { program as image } from "../support/kernels.ts"

const add = SimulatedRuntime.kernel({
  parameters: [CudaParameter.pointer, CudaParameter.input],
  cost: "20 micros",
  run: ({ args: [to, from] }) => {
    const [sum, other] = [to.view(Uint8Array), from.view(Uint8Array)]
    for (let index = 0; index < sum.length; index++) sum[index]! += other[index]!
  }
})

/** Writes 1 if both of its inputs are 0. */
const neither = SimulatedRuntime.kernel({
  parameters: [CudaParameter.output, CudaParameter.input, CudaParameter.input],
  cost: "20 micros",
  run: ({ args: [to, one, other] }) => to.store("u8", 0, one.load("u8", 0) + other.load("u8", 0) === 0 ? 1 : 0)
})

/** Faults if its input is 0. */
const divide = SimulatedRuntime.kernel({
  parameters: [CudaParameter.input],
  cost: "20 micros",
  run: ({ args: [from], fault }) => {
    if (from.load("u8", 0) === 0) fault("IllegalAddress")
  }
})

const kernels = { add, neither, divide }
const device = { memory: 2 ** 28 }
const runtime = SimulatedRuntime.layer({ devices: [device, device], kernels })

const kernel = <const Parameters extends ReadonlyArray<CudaParameter.ParameterKind>>(
  name: string,
  { parameters }: { readonly parameters: Parameters }
) =>
  Effect.gen(function*() {
    return yield* CudaKernel.get(yield* CudaModule.load(yield* image), name, parameters)
  })

const grid = { grid: 1, block: 1 }

type Program<A> = Effect.Effect<A, CudaError.CudaError, CudaRuntime.CudaRuntime | Scope.Scope>

const few = { maxRuns: 40, schedules: 10 }

const explore = <A>(program: Program<A>, options: CudaChecker.Options<A> = {}) =>
  CudaChecker.explore(program, { ...few, ...options, runtime })

/** Two streams, and a buffer that is 0. */
const setUp = Effect.gen(function*() {
  const [one, two] = [yield* CudaStream.make(), yield* CudaStream.make()]
  const buffer = yield* CudaMemory.allocate(64)
  yield* CudaMemory.fill(buffer, 0, one)
  yield* CudaStream.synchronize(one)
  return { one, two, buffer }
})

const firstByte = (buffer: CudaMemory.DeviceBuffer, stream: CudaStream.CudaStream) =>
  Effect.gen(function*() {
    const bytes = new Uint8Array(buffer.byteLength)
    yield* CudaMemory.download(bytes, buffer, stream)
    return bytes[0]
  })

const resultOf = <A, E>({ exit }: CudaChecker.Run<A, E>) =>
  exit !== undefined && Exit.isSuccess(exit) ? exit.value : undefined

/** The bug of a wait that is replaced by experience: "the copy never takes longer than 2 ms". */
const byExperience = Effect.gen(function*() {
  const { buffer, one, two } = yield* setUp
  const host = yield* CudaMemory.allocateHost(64)
  const sum = yield* CudaMemory.allocate(64)
  const kernel_ = yield* kernel("add", add)
  CudaMemory.view(host, Uint8Array).fill(1)
  yield* CudaMemory.fill(sum, 3, two)
  yield* CudaMemory.copy(buffer, host, one)
  yield* Effect.sleep("2 millis")
  yield* CudaKernel.launch(kernel_, grid, [sum, buffer], two)
  return yield* firstByte(sum, two)
})

describe("a race that changes the result", () => {
  it.effect("is found, with the smallest schedule, which can be replayed", () =>
    Effect.gen(function*() {
      const report = yield* explore(byExperience)
      assert.strictEqual(resultOf(report.undisturbed), 4)
      assert.deepStrictEqual(report.races.map(({ verdict, works }) => [works, verdict]), [[
        ["16:2", "17:2"],
        "changes"
      ]])
      const [finding] = report.findings
      assert.strictEqual(report.findings.length, 1)
      assert.strictEqual(resultOf(finding!.changed), 3)
      assert.deepStrictEqual(finding!.difference, { _tag: "Result", path: "result", expected: "4", found: "3" })
      const { letGo, schedule } = finding!.changed
      assert.strictEqual(schedule, "hold 16:2 until 17:2 # CudaMemory.copy after CudaKernel.launch of add")
      assert.deepStrictEqual(letGo, [])
      const [race] = finding!.races
      assert.deepStrictEqual([race?.first.operation, race?.second.operation], [
        "CudaMemory.copy",
        "CudaKernel.launch of add"
      ])
      assert.match(`${race?.first.frame} ${race?.second.frame}`, /explore\.test\.ts:\d+.*explore\.test\.ts:\d+/)

      const replay = yield* CudaChecker.replay(byExperience, schedule, { runtime })
      assert.deepStrictEqual([replay.difference, resultOf(replay.changed)], [finding!.difference, 3])
      assert.deepStrictEqual(replay.changed.ran, finding!.changed.ran)
      const failure = yield* Effect.flip(CudaChecker.expectNone(report))
      assert.include(failure.message, "1 race, 1 other outcome")
      assert.include(failure.message, schedule)
      assert.include(
        CudaChecker.formatComparison(replay),
        [
          "With this schedule:",
          "  stream 16 | fill 16:1 |           |          | copy 16:2 |",
          "  stream 17 |           | fill 17:1 | add 17:2 |           | copy 17:3"
        ].join("\n")
      )
      assert.match(CudaChecker.toSvg(replay), /^<svg .*<title>CudaMemory\.copy 16:2<\/title>.*<\/svg>\n$/s)
    }))

  it.effect("is the same report every time", () =>
    Effect.gen(function*() {
      const [first, second] = [yield* explore(byExperience), yield* explore(byExperience)]
      assert.strictEqual(CudaChecker.format(first), CudaChecker.format(second))
      assert.strictEqual(first.runs, second.runs)
    }))

  it.effect("needs two holds, if one alone changes nothing", () =>
    Effect.gen(function*() {
      const report = yield* explore(Effect.gen(function*() {
        const [one, two, three] = [yield* CudaStream.make(), yield* CudaStream.make(), yield* CudaStream.make()]
        const [a, b, out] = [
          yield* CudaMemory.allocate(1),
          yield* CudaMemory.allocate(1),
          yield* CudaMemory.allocate(1)
        ]
        const kernel_ = yield* kernel("neither", neither)
        for (const buffer of [a, b, out]) yield* CudaMemory.fill(buffer, 0, three)
        yield* CudaStream.synchronize(three)
        yield* CudaMemory.fill(a, 1, one)
        yield* CudaMemory.fill(b, 1, two)
        yield* CudaKernel.launch(kernel_, grid, [out, a, b], three)
        return yield* firstByte(out, three)
      }))
      assert.deepStrictEqual(report.races.map(({ verdict }) => verdict), ["harmless", "harmless"])
      assert.deepStrictEqual(
        report.findings.map(({ changed, races }) => [
          changed.schedule.split("\n").map((line) => line.replace(/ #.*/, "")).toSorted(),
          races.length
        ]),
        [[["hold 16:1 until 18:4", "hold 17:1 until 18:4"], 2]]
      )
      assert.isTrue(report.isExhausted)
    }))

  it.effect("may change only bytes that the program does not look at", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const { buffer, one, two } = yield* setUp
        yield* CudaMemory.fill(CudaMemory.slice(buffer, 0, 8), 1, one)
        yield* CudaMemory.fill(CudaMemory.slice(buffer, 4, 8), 2, two)
      })
      const report = yield* explore(program)
      const [finding] = report.findings
      assert.strictEqual(report.findings.length, 1)
      assert.strictEqual(finding!.difference._tag, "Bytes")
      assert.include(
        CudaChecker.format(report),
        "from byte 4: 02 02 02 02 02 02 02 02 as it happens, 01 01 01 01 02 02 02 02 with this schedule"
      )
      assert.include(CudaChecker.format(report), "Differs: buffer of CudaMemory.allocate, call 1, from")
      const ignored = yield* explore(program, { bytes: false })
      assert.deepStrictEqual(ignored.findings, [])
    }))

  it.effect("may change memory of the host, and managed memory", () =>
    Effect.gen(function*() {
      const report = yield* explore(Effect.gen(function*() {
        const { buffer, one, two } = yield* setUp
        const [host, managed] = [yield* CudaMemory.allocateHost(64), yield* CudaMemory.allocateManaged(64)]
        const pinned = yield* CudaMemory.pin(new Uint8Array(64))
        const other = yield* CudaMemory.allocate(64)
        yield* CudaMemory.fill(other, 9, one)
        yield* CudaStream.synchronize(one)
        for (const to of [host, managed, pinned]) {
          yield* CudaMemory.copy(to, buffer, one)
          yield* CudaMemory.copy(to, other, two)
        }
      }))
      const changed = report.races.map(({ difference }) =>
        difference?._tag === "Bytes" ? difference.buffer : difference
      )
      assert.deepStrictEqual(changed, [
        "buffer of CudaMemory.allocateHost, call 1",
        "buffer of CudaMemory.allocateManaged, call 1",
        "buffer of CudaMemory.pin, call 1"
      ])
      // Each buffer ends in one of two ways.
      assert.strictEqual(report.findings.length, 7)
      assert.isTrue(report.isExhausted)
    }))

  it.effect("differs in a block of a large buffer", () =>
    Effect.gen(function*() {
      const report = yield* explore(Effect.gen(function*() {
        const [one, two] = [yield* CudaStream.make(), yield* CudaStream.make()]
        const buffer = yield* CudaMemory.allocate(2 ** 21)
        yield* CudaMemory.fill(CudaMemory.slice(buffer, 10_000, 1), 1, one)
        yield* CudaMemory.fill(CudaMemory.slice(buffer, 10_000, 1), 2, two)
      }))
      const [finding] = report.findings
      assert.isTrue(finding?.difference._tag === "Bytes" && finding.difference.offset === 8192)
    }))
})

describe("a race that changes nothing", () => {
  it.effect("is reported as harmless", () =>
    Effect.gen(function*() {
      const report = yield* Effect.flatMap(
        explore(Effect.gen(function*() {
          const { buffer, one, two } = yield* setUp
          yield* CudaMemory.fill(buffer, 7, one)
          yield* CudaMemory.fill(buffer, 7, two)
        })),
        CudaChecker.expectNone
      )
      assert.deepStrictEqual(report.races.map(({ verdict }) => verdict), ["harmless"])
      assert.include(CudaChecker.format(report), "harmless")
    }))

  it.effect("is not reordered, if the host orders it in its own way", () =>
    Effect.gen(function*() {
      const report = yield* explore(
        Effect.gen(function*() {
          const { buffer, one, two } = yield* setUp
          const flag = yield* CudaMemory.allocateHost(64)
          yield* CudaMemory.fill(buffer, 1, one)
          yield* CudaMemory.copy(flag, buffer, one)
          const isSet = Effect.sync(() => CudaMemory.view(flag, Uint8Array)[0] === 1)
          while (!(yield* isSet)) yield* Effect.sleep("20 millis")
          yield* CudaMemory.fill(buffer, 1, two)
        }),
        { maxRuns: 20, schedules: 5 }
      )
      const between = report.races.filter(({ works }) => !works.join(" ").includes("host"))
      assert.deepStrictEqual(between.map(({ verdict }) => verdict), ["notReordered", "notReordered"])
      assert.deepStrictEqual(report.findings, [])
      assert.include(CudaChecker.format(report), "never ran in the other order")
    }))
})

describe("a program may", () => {
  const racing = <A>(end: (first: number | undefined) => Program<A>) =>
    Effect.gen(function*() {
      const { buffer, one, two } = yield* setUp
      yield* CudaMemory.fill(buffer, 1, one)
      yield* Effect.sleep("1 millis")
      return yield* end(yield* firstByte(buffer, two))
    })
  const differenceOf = <A>(program: Program<A>, options: CudaChecker.Options<A> = {}) =>
    Effect.map(explore(program, options), ({ findings }) => findings.map(({ difference }) => difference))

  it.effect("hang", () =>
    Effect.gen(function*() {
      const found = yield* differenceOf(racing((first) => first === 0 ? Effect.never : Effect.succeed(1)))
      assert.deepStrictEqual(found, [
        { _tag: "Exit", expected: "the program succeeds with 1", found: "the program hangs" }
      ])
    }))

  it.effect("go on and on, on the host", () =>
    Effect.gen(function*() {
      const again: Program<number> = Effect.flatMap(Effect.sleep("1 millis"), () => again)
      const found = yield* differenceOf(
        racing((first) => first === 0 ? again : Effect.succeed(1)),
        { deadline: "1 second", schedules: 0 }
      )
      assert.deepStrictEqual(found.map(({ found }) => found), ["the program hangs"])
    }))

  it.effect("go on and on, on the device", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const { one, two } = yield* setUp
        const [flag, other] = [yield* CudaMemory.allocate(4), yield* CudaMemory.allocate(4)]
        yield* CudaMemory.fill(flag, 1, one)
        yield* CudaStream.synchronize(one)
        const graph = yield* CudaGraph.record(CudaGraph.whileLoop(flag, CudaMemory.fill(other, 1)))
        const exec = yield* CudaGraph.instantiate(graph)
        yield* CudaMemory.fill(flag, 0, one)
        yield* Effect.sleep("1 millis")
        yield* CudaGraph.launch(exec, two)
        yield* CudaStream.synchronize(two)
      })
      const found = yield* differenceOf(program, { schedules: 0 })
      assert.deepStrictEqual(found.map(({ found }) => found), ["the program hangs"])
    }))

  it.effect("fail, die, or lose its device", () =>
    Effect.gen(function*() {
      const died = yield* differenceOf(
        racing((first) => first === 0 ? Effect.die(new Error("zero")) : Effect.succeed(1))
      )
      assert.deepStrictEqual(died.map(({ found }) => found), ["the program dies with Error: zero"])
      const failed = yield* differenceOf(
        racing((first) => first === 0 ? CudaMemory.allocate(2 ** 40) : Effect.succeed(undefined))
      )
      assert.deepStrictEqual(failed.map(({ found }) => found), [
        "the program fails with CudaError of CudaMemory.allocate: OutOfMemory"
      ])
      const lost = yield* differenceOf(Effect.gen(function*() {
        const { buffer, one, two } = yield* setUp
        const kernel_ = yield* kernel("divide", divide)
        yield* CudaMemory.fill(buffer, 1, one)
        yield* Effect.sleep("1 millis")
        yield* CudaKernel.launch(kernel_, grid, [buffer], two)
        yield* CudaStream.synchronize(two)
      }))
      assert.match(lost[0]!.found, /fails with CudaError of .*: IllegalAddress/)
    }))
})

describe("holding work back", () => {
  it.effect("never makes a program wait forever, however it waits", () =>
    Effect.gen(function*() {
      const poll = (stream: CudaStream.CudaStream): Program<void> =>
        Effect.flatMap(
          CudaStream.query(stream),
          (isDone) => isDone ? Effect.void : Effect.andThen(Effect.sleep("100 micros"), poll(stream))
        )
      for (const wait of [CudaStream.synchronize, poll]) {
        const program = Effect.gen(function*() {
          const { buffer, one, two } = yield* setUp
          yield* CudaMemory.fill(buffer, 1, one)
          yield* wait(one)
          yield* CudaMemory.fill(buffer, 2, two)
        })
        const { changed, difference } = yield* CudaChecker.replay(program, "hold 16:2 until 17:1", { runtime })
        assert.deepStrictEqual([difference, changed.letGo.length], [undefined, 1])
        assert.include(
          CudaChecker.formatComparison({ changed, difference, undisturbed: changed }),
          "because the program"
        )
      }
    }))

  it.effect("finds what depends on the time", () =>
    Effect.gen(function*() {
      const report = yield* explore(
        Effect.gen(function*() {
          const { buffer, one } = yield* setUp
          yield* CudaMemory.fill(buffer, 1, one)
          yield* Effect.sleep("1 millis")
          return yield* CudaStream.query(one)
        }),
        { schedules: 20 }
      )
      const [finding] = report.findings
      assert.deepStrictEqual([report.races, finding?.races], [[], []])
      assert.match(finding!.changed.schedule, /^seed \d+$/)
      const { changed } = yield* CudaChecker.replay(
        Effect.gen(function*() {
          const { buffer, one } = yield* setUp
          yield* CudaMemory.fill(buffer, 1, one)
          yield* Effect.sleep("1 millis")
          return yield* CudaStream.query(one)
        }),
        finding!.changed.schedule,
        { runtime }
      )
      assert.isFalse(resultOf(changed))
    }))
})

describe("both orders are run of", () => {
  const verdictsOf = <A>(program: Program<A>, options: CudaChecker.Options<A> = {}) =>
    Effect.map(explore(program, options), ({ findings, races }) => [
      races.map(({ verdict }) => verdict),
      findings.map(({ changed }) => changed.schedule.replaceAll(/ #.*/g, ""))
    ])

  it.effect("a look of the host at pinned memory", () =>
    Effect.gen(function*() {
      const look = (pause: "0 millis" | "1 millis") =>
        Effect.gen(function*() {
          const { buffer, one } = yield* setUp
          const host = yield* CudaMemory.allocateHost(64)
          yield* CudaMemory.fill(buffer, 5, one)
          yield* CudaMemory.copy(host, buffer, one)
          yield* Effect.sleep(pause)
          return CudaMemory.view(host, Uint8Array)[0]
        })
      const early = yield* explore(look("0 millis"))
      assert.deepStrictEqual([resultOf(early.undisturbed), early.findings.map(({ changed }) => resultOf(changed))], [
        0,
        [5]
      ])
      assert.strictEqual(
        early.findings[0]!.changed.schedule,
        "hold host:1 until 16:3 # CudaMemory.view after CudaMemory.copy"
      )
      assert.include(CudaChecker.format(early), "  host      |")
      const late = yield* verdictsOf(look("1 millis"))
      assert.deepStrictEqual(late, [["changes"], ["hold 16:3 until host:1"]])
    }))

  it.effect("nodes of a graph", () =>
    Effect.gen(function*() {
      const verdicts = yield* verdictsOf(Effect.gen(function*() {
        const { buffer, one } = yield* setUp
        const graph = yield* CudaGraph.record(
          CudaBranch.all([CudaMemory.fill(buffer, 1), CudaMemory.fill(CudaMemory.slice(buffer, 0, 8), 2)])
        )
        yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph), one)
      }))
      assert.deepStrictEqual(verdicts, [["changes"], ["hold 16:2/n0 until 16:2/n1"]])
    }))

  it.effect("a launch of a graph and a copy", () =>
    Effect.gen(function*() {
      const verdicts = yield* verdictsOf(Effect.gen(function*() {
        const { buffer, one, two } = yield* setUp
        const other = yield* CudaMemory.allocate(64)
        const graph = yield* CudaGraph.record(
          CudaBranch.all([CudaMemory.fill(buffer, 1), CudaMemory.fill(other, 2)])
        )
        yield* CudaGraph.launch(yield* CudaGraph.instantiate(graph), one)
        yield* CudaMemory.copy(other, buffer, two)
      }))
      assert.deepStrictEqual(verdicts[0], ["changes"])
    }))

  it.effect("batches, rows, and work of other code", () =>
    Effect.gen(function*() {
      const uses: Record<string, (buffer: CudaMemory.DeviceBuffer, stream: CudaStream.CudaStream) => Program<unknown>> =
        {
          batch: (buffer, stream) =>
            CudaMemory.copyBatch([
              { destination: CudaMemory.slice(buffer, 0, 8), source: CudaMemory.slice(buffer, 8, 8) },
              { destination: CudaMemory.slice(buffer, 16, 8), source: CudaMemory.slice(buffer, 24, 8) }
            ], stream),
          enqueue: (buffer, stream) =>
            CudaMemory.enqueue({
              writes: [buffer],
              stream,
              simulate: (_, [bytes]) => {
                bytes?.fill(3)
              }
            }, () => {}),
          access: (buffer, stream) =>
            CudaMemory.access(CheckedRuntime.unchecked(CudaMemory.fill(buffer, 4, stream)), {
              writes: [buffer],
              stream
            })
        }
      for (const [name, use] of Object.entries(uses)) {
        const verdicts = yield* verdictsOf(Effect.gen(function*() {
          const { buffer, one, two } = yield* setUp
          yield* use(buffer, one)
          yield* CudaMemory.fill(CudaMemory.slice(buffer, 0, 4), 1, two)
        }))
        assert.deepStrictEqual(verdicts[0], ["changes"], name)
      }
    }))

  it.effect("copies between devices", () =>
    Effect.gen(function*() {
      const verdicts = yield* verdictsOf(Effect.gen(function*() {
        const [one, two] = [
          yield* CudaStream.make(),
          yield* CudaDevice.withDevice(CudaStream.make(), 1)
        ]
        const near = yield* CudaMemory.allocate(64)
        const far = yield* CudaDevice.withDevice(CudaMemory.allocate(64), 1)
        yield* CudaMemory.fill(near, 1, one)
        yield* CudaMemory.copy(far, near, one)
        yield* CudaMemory.fill(far, 2, two)
      }))
      assert.deepStrictEqual(verdicts[0], ["changes"])
    }))

  it.effect("streams that the legacy default stream does not order", () =>
    Effect.gen(function*() {
      const program = (nonBlocking: boolean) =>
        Effect.gen(function*() {
          const stream = yield* CudaStream.make({ nonBlocking })
          const legacy = yield* CudaStream.defaultStream()
          const buffer = yield* CudaMemory.allocate(64)
          yield* CudaMemory.fill(buffer, 1, legacy)
          yield* CudaMemory.fill(buffer, 2, stream)
        })
      assert.deepStrictEqual((yield* verdictsOf(program(true)))[0], ["changes"])
      assert.deepStrictEqual(yield* verdictsOf(program(false)), [[], []])
    }))
})

describe("what is not meant to be compared", () => {
  it.effect("can be left out: results, bytes, and races on purpose", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const { buffer, one, two } = yield* setUp
        yield* CudaMemory.fill(buffer, 1, one)
        const value = yield* CheckedRuntime.unchecked(firstByte(buffer, two))
        return { value, same: true }
      })
      const all = yield* explore(program, { bytes: false })
      assert.deepStrictEqual([all.races, all.findings.map(({ races }) => races.length)], [[], [0]])
      const none = yield* explore(program, { bytes: false, result: ({ same }) => same })
      assert.deepStrictEqual(none.findings, [])
    }))
})

describe("options", () => {
  const program = CudaMemory.allocate(64)
  const cases: Record<string, Effect.Effect<unknown, CudaError.CudaError>> = {
    "maxRuns": CudaChecker.explore(program, { maxRuns: -1 }),
    "schedules": CudaChecker.explore(program, { schedules: 0.5 }),
    "seed": CudaChecker.explore(program, { seed: -1 }),
    "timeLimit": CudaChecker.explore(program, { timeLimit: 0 }),
    "deadline": CudaChecker.explore(program, { deadline: "Infinity" as "1 second" }),
    "patience": CudaChecker.replay(program, "", { patience: 0 }),
    "schedule": CudaChecker.replay(program, "hold everything"),
    "runtime": CudaChecker.explore(program, {
      runtime: Layer.effect(
        CudaRuntime.CudaRuntime,
        Effect.map(CudaRuntime.CudaRuntime, (inner) => ({ ...inner, kind: "native" as const }))
      ).pipe(Layer.provide(SimulatedRuntime.layer()))
    })
  }
  for (const [name, run] of Object.entries(cases)) {
    it.effect(`are refused: ${name}`, () => refuses(run, name))
  }

  it.effect("limit the runs of a program with many races", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const { buffer, one, two } = yield* setUp
        for (let index = 0; index < 25; index++) {
          yield* CudaMemory.fill(buffer, index, one)
          yield* CudaMemory.fill(buffer, 100, two)
        }
      })
      const report = yield* explore(program, { maxRuns: 10, schedules: 0 })
      assert.strictEqual(report.races.length, 625)
      assert.strictEqual(report.races.filter(({ verdict }) => verdict !== "notTried").length, 10)
      assert.deepStrictEqual([report.findings.length, report.isExhausted], [1, false])
      const lines = CudaChecker.format(report).split("\n")
      assert.isBelow(lines.length, 40)
      assert.match(lines.join("\n"), /and \d+ more like it/)
    }))

  it.effect("limit the time, and the report says so", () =>
    Effect.gen(function*() {
      const report = yield* explore(byExperience, { timeLimit: "1 micro" })
      assert.deepStrictEqual(report.races.map(({ verdict }) => verdict), ["notTried"])
      assert.deepStrictEqual([report.runs, report.isExhausted], [1, false])
    }))

  it.effect("leave programs what else they need, from the runtime and from outside", () =>
    Effect.gen(function*() {
      class Size extends Context.Service<Size, number>()("test/Size") {}
      class Value extends Context.Service<Value, number>()("test/Value") {}
      const program = Effect.gen(function*() {
        const { buffer, one } = yield* setUp
        const control = yield* SimulatedRuntime.SimulatedControl
        yield* CudaMemory.fill(CudaMemory.slice(buffer, 0, yield* Size), yield* Value, one)
        yield* CudaStream.synchronize(one)
        return (yield* control.bytes(buffer)).slice(0, 3)
      })
      let built = 0
      const sizes = Layer.effect(Size, Effect.sync(() => ++built && 2))
      const report = yield* CudaChecker.explore(program, { ...few, runtime: Layer.merge(runtime, sizes) }).pipe(
        Effect.provideService(Value, 7)
      )
      assert.deepStrictEqual(resultOf(report.undisturbed), Uint8Array.of(7, 7, 0))
      assert.strictEqual(built, report.runs)
      assert.deepStrictEqual(report.findings, [])
    }))

  it.effect("limit the runs, and the report says so", () =>
    Effect.gen(function*() {
      const program = Effect.gen(function*() {
        const { buffer, one, two } = yield* setUp
        for (let index = 0; index < 3; index++) {
          yield* CudaMemory.fill(CudaMemory.slice(buffer, index, 1), 1, one)
          yield* CudaMemory.fill(CudaMemory.slice(buffer, index, 1), 1, two)
        }
      })
      const report = yield* explore(program, { maxRuns: 2, schedules: 0 })
      assert.deepStrictEqual(report.races.map(({ verdict }) => verdict), ["harmless", "harmless", "notTried"])
      assert.isFalse(report.isExhausted)
      assert.include(CudaChecker.format(report), "not tried, because of maxRuns")
    }))
})
