/**
 * Exploration of orders, compared with oracles: schedules never run work in an order that CUDA forbids, and the search finds every outcome
 * that some order leads to.
 */
import { assert, describe, it } from "@effect/vitest"
import {
  CheckedRuntime,
  CudaChecker,
  CudaEvent,
  CudaKernel,
  CudaMemory,
  CudaModule,
  CudaParameter,
  CudaStream,
  SimulatedRuntime
} from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import { Director } from "../../src/layers/exploration/orders/Director.ts"
import type { Hold, Plan } from "../../src/layers/exploration/orders/holds.ts"
import { Model } from "../../src/layers/simulated/model/Model.ts"
import { EventState } from "../../src/layers/simulated/model/parts.ts"
import type { Latencies } from "../../src/layers/simulated/model/parts.ts"
import { World } from "../../src/layers/simulated/model/World.ts"
import { program as kernels } from "../support/kernels.ts"
import { makeRandom } from "../support/random.ts"

type Random = ReturnType<typeof makeRandom>
type Kind = "blocking" | "nonBlocking" | "legacy"

/** The bytes of a buffer that an operation uses. */
interface Part {
  readonly buffer: number
  readonly from: number
  readonly to: number
}

type Step =
  | { readonly do: "fill"; readonly stream: number; readonly to: Part; readonly value: number }
  | { readonly do: "copy" | "mix"; readonly stream: number; readonly to: Part; readonly from: Part }
  | { readonly do: "record" | "wait"; readonly stream: number; readonly event: number }
  | { readonly do: "sync"; readonly stream: number }

type Work = Extract<Step, { readonly to: Part }>

interface Program {
  readonly kinds: ReadonlyArray<Kind>
  readonly steps: ReadonlyArray<Step>
}

const bufferSize = 4
const buffers = 2
const events = 2

const isWork = (step: Step): step is Work => step.do === "fill" || step.do === "copy" || step.do === "mix"

const programOf = (random: Random, length: number): Program => {
  const kinds = Array.from({ length: random(2) + 2 }, (_, index): Kind => {
    if (random(3) > 0) return "nonBlocking"
    return index === 0 ? "legacy" : "blocking"
  })
  const part = (size: number): Part => {
    const from = random(bufferSize + 1 - size)
    return { buffer: random(buffers), from, to: from + size }
  }
  const step = (): Step => {
    const stream = random(kinds.length)
    const choice = random(10)
    const size = 1 + random(bufferSize)
    if (choice < 3) return { do: "fill", stream, to: part(size), value: 1 + random(9) }
    if (choice < 5) return { do: "copy", stream, to: part(size), from: part(size) }
    if (choice < 7) return { do: "mix", stream, to: part(size), from: part(size) }
    if (choice < 8) return { do: "record", stream, event: random(events) }
    if (choice < 9) return { do: "wait", stream, event: random(events) }
    return random(3) === 0 ? { do: "sync", stream } : { do: "record", stream, event: random(events) }
  }
  return { kinds, steps: Array.from({ length }, step) }
}

/** What each work comes after, as CUDA guarantees it. */
const orderOf = ({ kinds, steps }: Program): ReadonlyArray<ReadonlySet<number>> => {
  const streams = kinds.map(() => new Set<number>())
  const recorded: Array<ReadonlySet<number>> = []
  const host = new Set<number>()
  /** What the next operation of a stream comes after. */
  const tail = (stream: number): Set<number> => {
    const isOrdered = (other: number) =>
      (kinds[stream] === "legacy" && kinds[other] === "blocking") ||
      (kinds[stream] === "blocking" && kinds[other] === "legacy")
    return new Set([...streams[stream]!, ...host, ...streams.flatMap((own, other) => isOrdered(other) ? [...own] : [])])
  }
  const before: Array<ReadonlySet<number>> = []
  for (const step of steps) {
    const own = tail(step.stream)
    if (isWork(step)) {
      before.push(own)
      streams[step.stream] = new Set([...own, before.length - 1])
    } else if (step.do === "record") {
      streams[step.stream] = own
      recorded[step.event] = own
    } else if (step.do === "wait") {
      streams[step.stream] = new Set([...own, ...recorded[step.event] ?? []])
    } else own.forEach((work) => host.add(work))
  }
  return before
}

const apply = (memory: ReadonlyArray<Uint8Array>, work: Work): void => {
  const to = memory[work.to.buffer]!.subarray(work.to.from, work.to.to)
  if (work.do === "fill") {
    to.fill(work.value)
    return
  }
  const from = memory[work.from.buffer]!.slice(work.from.from, work.from.to)
  for (let index = 0; index < to.length; index++) {
    to[index] = work.do === "copy" ? from[index]! : to[index]! * 3 + from[index]! + 1
  }
}

/** What comes of every order that is allowed. */
const outcomesOf = (program: Program): ReadonlySet<string> => {
  const works = program.steps.filter(isWork)
  const before = orderOf(program)
  const outcomes = new Set<string>()
  const seen = new Set<string>()
  const go = (memory: ReadonlyArray<Uint8Array>, done: ReadonlySet<number>): void => {
    const state = `${memory.join(" ")} ${[...done].toSorted().join(",")}`
    if (seen.has(state)) return
    seen.add(state)
    if (done.size === works.length) outcomes.add(memory.map(String).join(" "))
    for (const [index, work] of works.entries()) {
      if (done.has(index) || ![...before[index]!].every((other) => done.has(other))) continue
      const next = memory.map((bytes) => bytes.slice())
      apply(next, work)
      go(next, new Set([...done, index]))
    }
  }
  go(Array.from({ length: buffers }, () => new Uint8Array(bufferSize)), new Set())
  return outcomes
}

const mix = SimulatedRuntime.kernel({
  parameters: [CudaParameter.pointer, CudaParameter.input],
  cost: "20 micros",
  run: ({ args: [to, from] }) => {
    const source = from.view(Uint8Array).slice()
    const target = to.view(Uint8Array)
    for (let index = 0; index < target.length; index++) target[index] = target[index]! * 3 + source[index]! + 1
  }
})

/** The program on a runtime. Returns the last bytes of its buffers. Operations that are refused are left out. */
const execute = ({ kinds, steps }: Program) =>
  Effect.gen(function*() {
    const streams = yield* Effect.forEach(kinds, (kind) =>
      kind === "legacy" ? CudaStream.defaultStream() : CudaStream.make({ nonBlocking: kind === "nonBlocking" }))
    const memory = yield* Effect.forEach(Array.from({ length: buffers }), () =>
      CudaMemory.allocate(bufferSize))
    const marks = yield* Effect.forEach(Array.from({ length: events }), () => CudaEvent.make())
    const kernel = yield* CudaKernel.get(yield* CudaModule.load(yield* kernels), "mix", mix.parameters)
    for (const buffer of memory) yield* CudaMemory.fill(buffer, 0, streams[0])
    for (const stream of streams) yield* CudaStream.synchronize(stream)
    const slice = ({ buffer, from, to }: Part) => CudaMemory.slice(memory[buffer]!, from, to - from)
    for (const step of steps) {
      const stream = streams[step.stream]!
      switch (step.do) {
        case "fill":
          yield* Effect.ignore(CudaMemory.fill(slice(step.to), step.value, stream))
          break
        case "copy":
          yield* Effect.ignore(CudaMemory.copy(slice(step.to), slice(step.from), stream))
          break
        case "mix":
          yield* Effect.ignore(
            CudaKernel.launch(kernel, { grid: 1, block: 1 }, [slice(step.to), slice(step.from)], stream)
          )
          break
        case "record":
          yield* CudaEvent.record(marks[step.event]!, stream)
          break
        case "wait":
          yield* CudaStream.waitEvent(stream, marks[step.event]!)
          break
        case "sync":
          yield* CudaStream.synchronize(stream)
      }
    }
    for (const stream of streams) yield* CudaStream.synchronize(stream)
    const bytes = memory.map(() => new Uint8Array(bufferSize))
    for (const [index, buffer] of memory.entries()) yield* CudaMemory.download(bytes[index]!, buffer, streams[0])
    return bytes.map(String).join(" ")
  })

const runtime = SimulatedRuntime.layer({ kernels: { mix } })

/** A copy within a buffer may overlap itself, which means nothing. */
const isSound = ({ steps }: Program): boolean =>
  steps.every((step) =>
    !("from" in step) || step.from.buffer !== step.to.buffer || step.from.from >= step.to.to ||
    step.to.from >= step.from.to
  )

describe("schedules", () => {
  const traits = {
    memory: 2 ** 30,
    copyEngines: 2,
    concurrentKernels: 4,
    hostBandwidth: 1e9,
    deviceBandwidth: 1e9,
    peerBandwidth: 1e9,
    copyLatency: 10
  }

  /** Runs a program on a model under a schedule. Returns the order in which its works end. */
  const endsOf = (
    { kinds, steps }: Program,
    plan: Plan,
    latencies?: Latencies
  ): ReadonlyArray<number> => {
    const world = new World()
    const model = new Model(world, [{ ...traits, latencies }])
    const device = model.devices[0]!
    const director = new Director(world, plan, {
      now: () => world.now,
      patience: 1000,
      mostOperations: Infinity
    })
    world.schedule = director
    const streams = kinds.map((kind) =>
      kind === "legacy" ? device.legacy : model.createStream(device, 0, kind === "nonBlocking")
    )
    const marks = Array.from({ length: events }, () => new EventState())
    const ends: Array<number> = []
    let count = 0
    for (const step of steps) {
      const stream = streams[step.stream]!
      if (isWork(step)) {
        const number = count++
        const duration = step.do === "fill" ? step.value * 10 : 35
        model.work(stream, { duration, act: () => ends.push(number) })
      } else if (step.do === "record") model.record(marks[step.event]!, stream, true)
      else if (step.do === "wait") model.waitEvent(stream, marks[step.event]!)
      else {
        const record = world.record(stream, true)
        world.runUntil(() => record.done)
      }
    }
    world.runUntil(() => false)
    assert.deepStrictEqual([world.pending, ends.length], [0, count])
    return ends
  }

  const refuse = (program: Program, ends: ReadonlyArray<number>): void => {
    const before = orderOf(program)
    const done = new Set<number>()
    for (const work of ends) {
      for (const other of before[work]!) {
        if (!done.has(other)) assert.fail(`${work} before ${other}: ${JSON.stringify({ program, ends })}`)
      }
      done.add(work)
    }
  }

  it("of chance keep the order that CUDA guarantees, and differ", () => {
    const orders = new Set<string>()
    for (let seed = 1; seed <= 200; seed++) {
      const program = programOf(makeRandom(seed), 25)
      for (let schedule = 0; schedule < 50; schedule++) {
        const ends = endsOf(program, { seed: schedule })
        refuse(program, ends)
        refuse(program, endsOf(program, { seed: schedule }, { timedRecord: 20, wait: 15, waitAcrossEngines: 40 }))
        orders.add(`${seed} ${ends.join(" ")}`)
      }
    }
    assert.isAbove(orders.size, 3000)
  })

  it("of holds keep it too, even of holds that cannot be kept", () => {
    for (let seed = 1; seed <= 3000; seed++) {
      const random = makeRandom(seed)
      const program = programOf(random, 25)
      const lane = (): string => {
        const stream = random(program.kinds.length)
        const made = program.kinds.slice(0, stream).filter((kind) => kind !== "legacy").length
        return program.kinds[stream] === "legacy" ? "0" : `${16 + made}`
      }
      const name = () => `${lane()}:${1 + random(6)}`
      const holds = Array.from({ length: random(8) }, (): Hold => ({ work: name(), until: name() }))
      refuse(program, endsOf(program, { holds }))
    }
  })
})

describe("random programs", () => {
  it.effect("without a race come to one result under hundreds of schedules", () =>
    Effect.gen(function*() {
      // Operations that race are refused, so that what is left has no race.
      const refusing = CheckedRuntime.layer({ mode: "fail" }).pipe(Layer.provide(runtime))
      for (let seed = 1; seed <= 4; seed++) {
        const program = programOf(makeRandom(seed * 7), 30)
        const report = yield* CudaChecker.explore(execute(program), { runtime: refusing, schedules: 100, seed })
        assert.deepStrictEqual([report.races.length, report.findings.length, report.runs], [0, 0, 101])
        assert.isTrue(report.undisturbed.exit !== undefined && Exit.isSuccess(report.undisturbed.exit))
        assert.isAbove(report.undisturbed.ran.length, 8)
        yield* CudaChecker.expectNone(report)
      }
    }), 60_000)

  it.effect("with races come to every outcome of some order, and to no other", () =>
    Effect.gen(function*() {
      let others = 0
      let tried = 0
      for (let seed = 1; tried < 25; seed++) {
        const program = programOf(makeRandom(seed), 9)
        const expected = outcomesOf(program)
        if (!isSound(program) || expected.size > 12) continue
        tried++
        const report = yield* CudaChecker.explore(execute(program), { runtime, schedules: 0, bytes: false })
        const exits = [report.undisturbed, ...report.findings.map(({ changed }) => changed)].map(({ exit }) => exit)
        const found = exits.map((exit) => exit !== undefined && Exit.isSuccess(exit) ? exit.value : String(exit))
        assert.deepStrictEqual(
          found.toSorted(),
          [...expected].toSorted(),
          `seed ${seed}: ${JSON.stringify(program)}\n${CudaChecker.format(report)}`
        )
        assert.isTrue(report.isExhausted)
        others += report.findings.length
        for (const { changed, difference } of report.findings) {
          const again = yield* CudaChecker.replay(execute(program), changed.schedule, { runtime, bytes: false })
          assert.deepStrictEqual(again.difference, difference)
        }
      }
      assert.isAbove(others, 10)
    }), 60_000)
})
