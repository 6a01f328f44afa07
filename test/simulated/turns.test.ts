/**
 * Data that moves over several turns of the event loop: the same times and bytes as if it had moved at once, without holding the loop up.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaEvent, CudaMemory, CudaStream, SimulatedRuntime } from "effect-cuda"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { monitorEventLoopDelay } from "node:perf_hooks"
import { Model } from "../../src/layers/simulated/model/Model.ts"
import { pieceBytes } from "../../src/layers/simulated/model/moves.ts"
import { EventState } from "../../src/layers/simulated/model/parts.ts"
import type { DeviceTraits, EventRecord } from "../../src/layers/simulated/model/parts.ts"
import { Storage } from "../../src/layers/simulated/model/Storage.ts"
import type { Turns } from "../../src/layers/simulated/model/Turns.ts"
import { World } from "../../src/layers/simulated/model/World.ts"

/** Two pieces and a bit. */
const bufferSize = 2 * pieceBytes + 17
const buffers = 5

/** A byte takes one nanosecond. */
const traits: DeviceTraits = {
  memory: 1e9,
  copyEngines: 2,
  concurrentKernels: 4,
  hostBandwidth: 1e9,
  deviceBandwidth: 1e9,
  peerBandwidth: 1e9,
  copyLatency: 0
}

/** Every piece, and every function, takes a turn. */
class OnePiece implements Turns {
  isOver = false
  turns = 0
  onNext: () => void = () => {}
  charge<A>(run: () => A): A {
    this.isOver = true
    return run()
  }
  hold(): void {}
  next(): void {
    this.turns++
    this.isOver = false
    this.onNext()
  }
}

const below = (limit: number) => Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: limit - 1 }))

const Program = Schema.Array(Schema.Struct({
  op: Schema.Literals(["copy", "upload", "download", "part", "rows", "fill", "work", "record", "wait"]),
  stream: below(5),
  event: below(3),
  to: below(buffers),
  from: below(buffers),
  value: below(30),
  pause: below(9),
  /** Turns that begin before the next instruction. */
  turns: below(4)
})).check(Schema.isMaxLength(30))

type Instruction = typeof Program["Type"][number]

const execute = (program: ReadonlyArray<Instruction>, turns: OnePiece | undefined, recordTimeline: boolean) => {
  let now = 0
  const world = turns === undefined ? new World() : new World(() => now, turns)
  const model = new Model(world, [traits], recordTimeline)
  const device = model.devices[0]!
  const streams = [device.legacy, ...[false, false, true, true].map((free) => model.createStream(device, 0, free))]
  const events = [0, 1, 2].map(() => new EventState())
  const storages = (on: typeof device | undefined) =>
    Array.from({ length: buffers }, (_, index) => {
      const storage = new Storage(on, bufferSize)
      storage.touch().forEach((__, at, bytes) => bytes[at] = at % 89 === 0 ? index + at : index)
      return storage
    })
  const [memory, host] = [storages(device), storages(undefined)]
  const records: Array<EventRecord> = []
  const ran: Array<string> = []
  // Unequal lengths: which of two unordered operations that end in the same moment is first is nobody's promise.
  const enqueue = ({ event, from, op, stream, to, value }: Instruction, index: number) => {
    const s = streams[stream]!
    const length = bufferSize - 40 - 64 * index
    switch (op) {
      case "copy":
        return model.copy(s, memory[to]!, 0, memory[from]!, 0, length)
      case "upload":
        return model.copy(s, memory[to]!, 0, host[from]!, 0, length)
      case "download":
        return model.copy(s, host[to]!, 0, memory[from]!, 0, length)
      // Overlaps itself, up or down.
      case "part":
        return model.copy(s, memory[to]!, value % 2 * value, memory[to]!, (1 - value % 2) * value, length)
      case "rows":
        return model.copyRows(s, memory[to]!, memory[from]!, {
          toOffset: value,
          toPitch: 1000,
          fromOffset: 0,
          fromPitch: 1001,
          width: 999,
          height: Math.floor(length / 1001)
        })
      case "fill":
        return value % 2 === 0
          ? model.fill(s, memory[to]!, value, value, 8, length >> 1)
          : model.fill(s, memory[to]!, 4 * value, value * 0x10001, 32, length >> 3)
      case "work":
        return model.work(s, {
          duration: value,
          act: () => ran.push(`${index} at ${world.now}: ${memory[to]!.touch()[0]}`)
        })
      case "record":
        model.record(events[event]!, s)
        return records.push(events[event]!.current!)
      case "wait":
        return model.waitEvent(s, events[event]!)
    }
  }
  for (const [index, instruction] of program.entries()) {
    now += instruction.pause * 70_001
    world.advance(now)
    for (let turn = 0; turn < instruction.turns; turn++) turns?.next()
    enqueue(instruction, index)
  }
  now += 1e9
  world.advance(now)
  while (world.pending > 0 && turns !== undefined) turns.next()
  assert.strictEqual(world.pending, 0)
  return {
    bytes: [...memory, ...host].map((storage) => Buffer.from(storage.touch()).toString("latin1")),
    times: records.map(({ time }) => time),
    ran: ran.toSorted(),
    timeline: (model.timeline ?? []).map((entry) => JSON.stringify(entry)).toSorted()
  }
}

describe("data that moves over several turns", () => {
  for (const recordTimeline of [true, false]) {
    it.prop(
      `leaves the times and bytes of random programs as they are, ${recordTimeline ? "with" : "without"} a timeline`,
      [Program],
      ([program]) => {
        const turns = new OnePiece()
        const apart = execute(program, turns, recordTimeline)
        const atOnce = execute(program, undefined, recordTimeline)
        assert.deepStrictEqual(apart.times, atOnce.times)
        assert.deepStrictEqual(apart.timeline, atOnce.timeline)
        assert.deepStrictEqual(apart.ran, atOnce.ran)
        for (const [index, bytes] of apart.bytes.entries()) {
          assert.isTrue(bytes === atOnce.bytes[index], `buffer ${index}`)
        }
      },
      { arbitrary: { runs: 12, size: 30 } }
    )
  }

  it("takes a turn for each piece", () => {
    const turns = new OnePiece()
    const instruction = { op: "upload", stream: 1, event: 0, to: 0, from: 1, value: 0, pause: 0, turns: 0 } as const
    execute([instruction, { ...instruction, stream: 3, to: 1 }], turns, true)
    assert.strictEqual(turns.turns, 3)
  })

  it("ends with the contexts", () => {
    const turns = new OnePiece()
    let now = 0
    const world = new World(() => now, turns)
    const model = new Model(world, [traits])
    const device = model.devices[0]!
    const stream = model.createStream(device, 0, true)
    const memory = new Storage(device, bufferSize)
    const told: Array<number> = []
    model.fill(stream, memory, 0, 1, 8, bufferSize)
    model.watchStream(stream, (status) => told.push(status))
    now = bufferSize
    world.advance(now)
    assert.strictEqual(world.nextTime(), now)
    world.lose(device, 700)
    turns.next()
    model.tell(() => {})
    assert.deepStrictEqual(told, [700])
    assert.strictEqual(world.pending, 0)
    assert.strictEqual(memory.touch()[bufferSize - 1], 0)
  })

  /** A fill whose data has begun to move, and a function that lets the clock go on. */
  const standing = () => {
    const turns = new OnePiece()
    let now = 0
    const world = new World(() => now, turns)
    const model = new Model(world, [traits], true)
    const device = model.devices[0]!
    const memory = new Storage(device, bufferSize)
    const goTo = (time: number) => {
      now = time
      world.advance(now)
    }
    const begin = () => {
      model.fill(model.createStream(device, 0, true), memory, 0, 1, 8, bufferSize)
      goTo(bufferSize)
    }
    return { begin, device, goTo, memory, model, turns, world }
  }

  it("lets work that waits for something end at the time at which it is there", () => {
    const { begin, device, goTo, model, turns, world } = standing()
    const stream = model.createStream(device, 0, true)
    const event = new EventState()
    let end = () => {}
    model.workUntil(stream, 5, (ends) => {
      end = ends
      return "something"
    })
    model.record(event, stream)
    goTo(10)
    begin()
    goTo(bufferSize + 10)
    turns.next()
    goTo(bufferSize + 30)
    end()
    assert.deepStrictEqual([event.current!.done, world.pending], [false, 3])
    while (world.pending > 0) turns.next()
    assert.strictEqual(event.current!.time, bufferSize + 30)
  })

  it("is done before work ahead of the clock", () => {
    const { begin, memory, world } = standing()
    begin()
    assert.strictEqual(world.pending, 1)
    world.runUntil(() => false)
    assert.deepStrictEqual([world.pending, memory.touch()[bufferSize - 1]], [0, 1])
  })

  it("takes one turn under a schedule, which is told of it once", () => {
    const { begin, memory, world } = standing()
    const told: Array<string> = []
    world.schedule = {
      patience: 1,
      isRestless: false,
      node: undefined,
      enqueued: () => told.push("enqueued"),
      isHeld: () => false,
      acting: () => told.push(`acting on ${memory.touch()[0]}`),
      ended: () => told.push(`ended with ${memory.touch()[bufferSize - 1]}`),
      letGo: () => told.push("let go")
    }
    begin()
    assert.strictEqual(world.pending, 0)
    assert.deepStrictEqual(told, ["enqueued", "acting on 0", "ended with 1"])
  })
})

const gibibyte = 2 ** 30

const large = Effect.gen(function*() {
  const stream = yield* CudaStream.make()
  const [host, device] = [yield* CudaMemory.allocateHost(gibibyte), yield* CudaMemory.allocate(gibibyte)]
  host.bytes[gibibyte - 1] = 7
  yield* CudaMemory.fill(device, 3, stream)
  return { stream, host, device }
})

describe("a copy of 1 GiB", () => {
  it.live("leaves turns of the event loop to others, and a wait for it finds the bytes", () =>
    Effect.gen(function*() {
      const { device, host, stream } = yield* large
      const event = yield* CudaEvent.make()
      const delays = monitorEventLoopDelay({ resolution: 1 })
      delays.enable()
      let turns = 0
      const others = setInterval(() => turns++, 1)
      yield* CudaMemory.copy(device, host, stream)
      yield* CudaEvent.record(event, stream)
      yield* CudaEvent.synchronize(event)
      clearInterval(others)
      delays.disable()
      const control = yield* SimulatedRuntime.SimulatedControl
      const bytes = yield* control.bytes(device)
      assert.deepStrictEqual([bytes[0], bytes[gibibyte - 1]], [0, 7])
      assert.isAbove(turns, 20, `turns of the event loop; longest delay ${delays.max / 1e6} ms`)
    }).pipe(Effect.scoped, Effect.provide(SimulatedRuntime.layer())), 60_000)

  it.effect("is complete when its time has come, with a clock that stands still", () =>
    Effect.gen(function*() {
      const { device, host, stream } = yield* large
      const control = yield* SimulatedRuntime.SimulatedControl
      yield* CudaMemory.copy(device, host, stream)
      yield* TestClock.adjust("1 second")
      assert.isTrue(yield* CudaStream.query(stream))
      const bytes = yield* control.bytes(device)
      assert.deepStrictEqual([bytes[0], bytes[gibibyte - 1]], [0, 7])
    }).pipe(Effect.scoped, Effect.provide(SimulatedRuntime.layer())), 60_000)
})
