import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import { neverFinishes } from "../../src/layers/shared/waits.ts"
import { becauseOf, Model } from "../../src/layers/simulated/model/Model.ts"
import { EventState, Pool } from "../../src/layers/simulated/model/parts.ts"
import type { DeviceTraits, EventRecord, Stream } from "../../src/layers/simulated/model/parts.ts"
import { Storage } from "../../src/layers/simulated/model/Storage.ts"
import { World } from "../../src/layers/simulated/model/World.ts"
import { contents, graph, schedule } from "../support/reference.ts"
import type { Instruction, Node } from "../support/reference.ts"

/** One byte takes one nanosecond on every link, and nothing else takes time. */
const plain: DeviceTraits = {
  memory: 10_000,
  copyEngines: 2,
  concurrentKernels: 128,
  hostBandwidth: 1e9,
  deviceBandwidth: 1e9,
  peerBandwidth: 1e9,
  copyLatency: 0
}

const make = (...devices: ReadonlyArray<Partial<DeviceTraits>>) => makeWith(true, devices)

const makeWith = (recordTimeline: boolean, devices: ReadonlyArray<Partial<DeviceTraits>>) => {
  const world = new World()
  const traits = devices.length === 0 ? [plain] : devices.map((device) => ({ ...plain, ...device }))
  const model = new Model(world, traits, recordTimeline)
  const device = model.devices[0]!
  return {
    world,
    model,
    device,
    stream: (priority = 0, nonBlocking = true) => model.createStream(device, priority, nonBlocking)
  }
}

const times = (model: Model, kind: string) =>
  model.timeline!.filter((entry) => entry.kind === kind).map(({ start, end }) => [start, end])

const done = (event: EventState) => event.current === undefined || event.current.done

describe("engines", () => {
  const upAndDown = (copyEngines: number) => {
    const { device, model, stream, world } = make({ copyEngines })
    const [host, memory] = [new Storage(undefined, 100), new Storage(device, 100)]
    model.copy(stream(), memory, 0, host, 0, 100)
    model.copy(stream(), host, 0, memory, 0, 50)
    world.advance(1000)
    return [times(model, "hostToDevice"), times(model, "deviceToHost")]
  }
  it("overlaps an upload and a download on two copy engines", () => {
    assert.deepStrictEqual(upAndDown(2), [[[0, 100]], [[0, 50]]])
  })
  it("takes turns on one copy engine", () => {
    assert.deepStrictEqual(upAndDown(1), [[[0, 100]], [[100, 150]]])
  })
  it("takes latency plus size over bandwidth, in whole nanoseconds", () => {
    const { device, model, stream, world } = make({ copyLatency: 7, hostBandwidth: 3e9 })
    model.copy(stream(), new Storage(device, 100), 0, new Storage(undefined, 100), 0, 100)
    world.advance(1000)
    assert.deepStrictEqual(times(model, "hostToDevice"), [[0, 41]])
  })
  it("copies between devices on the first copy engine of the stream's device", () => {
    const { model, stream, world } = make({}, {})
    const [a, b] = model.devices
    const s = stream()
    model.copy(s, new Storage(b, 10), 0, new Storage(a, 10), 0, 10)
    model.copy(stream(), new Storage(a, 10), 0, new Storage(undefined, 10), 0, 10)
    world.advance(100)
    assert.deepStrictEqual([times(model, "peerToPeer"), times(model, "hostToDevice")], [[[0, 10]], [[10, 20]]])
  })
  it("starts the higher priority first, then the earlier ready, then the earlier enqueued", () => {
    const { model, stream, world } = make({ concurrentKernels: 1 })
    const order: Array<string> = []
    const work = (name: string, on: Stream, duration: number) =>
      model.work(on, { duration, act: () => order.push(name) })
    work("first", stream(), 10)
    const late = stream()
    model.fork(late, [late])
    work("low, earlier", stream(0), 10)
    world.advance(1)
    work("low, later", stream(0), 10)
    work("low, same moment", late, 10)
    work("high", stream(-1), 10)
    world.advance(1000)
    assert.deepStrictEqual(order, ["first", "high", "low, earlier", "low, later", "low, same moment"])
  })
  it("limits concurrent work", () => {
    const { model, stream, world } = make({ concurrentKernels: 2 })
    for (let i = 0; i < 3; i++) model.work(stream(), { duration: 10 })
    world.advance(100)
    assert.deepStrictEqual(times(model, "work"), [[0, 10], [0, 10], [10, 20]])
  })
})

describe("events", () => {
  it("does not hold an engine while an operation waits", () => {
    const { device, model, stream, world } = make()
    const [slow, waiting, free] = [stream(), stream(), stream()]
    const [host, memory] = [new Storage(undefined, 10), new Storage(device, 10)]
    model.work(slow, { duration: 500 })
    const event = new EventState()
    model.record(event, slow)
    model.waitEvent(waiting, event)
    model.copy(waiting, memory, 0, host, 0, 10)
    model.copy(free, memory, 0, host, 0, 10)
    world.advance(1000)
    assert.deepStrictEqual(
      model.timeline!.filter(({ kind }) => kind === "hostToDevice").map(({ start, streamId }) => [streamId, start]),
      [[free.id, 0], [waiting.id, 500]]
    )
  })
  it("keeps the record a wait was enqueued with when the event is recorded again", () => {
    const { model, stream, world } = make()
    const [a, b, waiting] = [stream(), stream(), stream()]
    const event = new EventState()
    model.work(a, { duration: 10 })
    model.record(event, a)
    model.waitEvent(waiting, event)
    model.work(b, { duration: 100 })
    model.record(event, b)
    world.advance(10)
    assert.isFalse(waiting.busy)
    assert.isFalse(done(event))
    world.advance(100)
    assert.isTrue(done(event))
    assert.strictEqual(event.current!.time, 100)
  })
  it("does not wait for an event that was never recorded", () => {
    const { model, stream } = make()
    const waiting = stream()
    model.waitEvent(waiting, new EventState())
    assert.isFalse(waiting.busy)
  })
  it("notifies watchers of the record that was current, once each and in time order", () => {
    const { model, stream, world } = make()
    const s = stream()
    const event = new EventState()
    const told: Array<string> = []
    for (const name of ["first", "second"]) {
      model.work(s, { duration: 10 })
      model.record(event, s)
      model.watchRecord(event.current!, (status) => told.push(`${name} ${status}`))
    }
    world.advance(10)
    model.tell(() => {})
    assert.deepStrictEqual(told, ["first 0"])
    world.advance(20)
    model.tell(() => {})
    assert.deepStrictEqual(told, ["first 0", "second 0"])
    assert.strictEqual(model.waiting.size, 0)
  })
})

describe("the legacy default stream", () => {
  it("synchronizes with blocking streams in both directions, and not with others", () => {
    const { device, model, stream, world } = make()
    const [blocking, other] = [stream(0, false), stream(0, false)]
    const free = stream(0, true)
    model.work(blocking, { duration: 10 })
    model.work(free, { duration: 1000 })
    model.work(device.legacy, { duration: 5 })
    model.work(other, { duration: 3 })
    model.work(device.perThread, { duration: 2 })
    model.work(free, { duration: 1 })
    world.advance(2000)
    const startOf = (s: Stream) => model.timeline!.filter(({ streamId }) => streamId === s.id).map(({ start }) => start)
    assert.deepStrictEqual([blocking, device.legacy, other, device.perThread, free].map(startOf), [
      [0],
      [10],
      [15],
      [15],
      [0, 1000]
    ])
  })
  it("is not ready while a blocking stream works; a blocking stream reports its own state", () => {
    const { device, model, stream, world } = make()
    const [blocking, free] = [stream(0, false), stream(0, true)]
    model.work(free, { duration: 100 })
    assert.isFalse(device.legacy.busy)
    model.work(blocking, { duration: 10 })
    assert.isTrue(device.legacy.busy)
    world.advance(10)
    assert.isFalse(device.legacy.busy)
    model.work(device.legacy, { duration: 10 })
    assert.isFalse(blocking.busy)
    const event = new EventState()
    model.record(event, blocking)
    assert.isFalse(done(event))
    world.advance(20)
    assert.isTrue(done(event))
  })
})

describe("faults", () => {
  it("ends pending work on every device, and notifies the watchers", () => {
    const { model, world } = make({}, {})
    const [a, b] = model.devices.map((device) => model.createStream(device, 0, true))
    const ran: Array<string> = []
    const statuses: Array<string> = []
    model.work(a!, { duration: 10, fault: 700 })
    model.work(a!, { duration: 10, act: () => ran.push("after the fault") })
    model.work(b!, { duration: 20, act: () => ran.push("other device") })
    model.watchStream(a!, (status) => statuses.push(`a ${status} at ${world.now}`))
    model.watchStream(b!, (status) => statuses.push(`b ${status} at ${world.now}`))
    world.advance(9)
    assert.strictEqual(model.devices[0]!.lost, 0)
    world.advance(10)
    model.tell(() => {})
    world.advance(50)
    model.tell(() => {})
    assert.deepStrictEqual(ran, [])
    assert.deepStrictEqual(statuses, ["a 700 at 10", "b 700 at 10"])
    assert.deepStrictEqual(model.devices.map(({ lost }) => lost), [700, 700])
    assert.strictEqual(world.pending, 0)
  })
  it("turns a throwing function into a failed launch", () => {
    const { device, model, stream, world } = make()
    model.work(stream(), {
      duration: 1,
      act: () => {
        throw new Error("kernel bug")
      }
    })
    world.advance(1)
    assert.strictEqual(device.lost, 719)
  })
})

describe("memory", () => {
  it("counts an allocation at once and frees it after the work of its users", () => {
    const { device, model, stream, world } = make()
    const user = stream()
    const pool = new Pool(9000, 0)
    assert.isTrue(model.reserve(device, pool, 8000))
    assert.isFalse(model.reserve(device, pool, 1001))
    assert.isFalse(model.reserve(device, device.pool, 2001))
    model.work(user, { duration: 10 })
    model.release(device, new Storage(device, 8000, pool), [user])
    model.work(user, { duration: 100 })
    let happened = false
    model.watchRecord(world.record(device.releases, true), () => {
      happened = true
    })
    world.advance(9)
    assert.strictEqual(device.usedMemory, 8000)
    world.advance(10)
    model.tell(() => {})
    assert.strictEqual(device.usedMemory, 0)
    assert.isTrue(happened)
    assert.isTrue(user.busy)
  })
  it("forgets a destroyed stream on which memory was released", () => {
    const { device, model, stream, world } = make()
    const [idle, busy] = [stream(), stream()]
    for (const own of [idle, busy]) {
      model.reserve(device, device.pool, 1000, own)
      model.work(own, { duration: own === idle ? 10 : 100 })
      model.releaseOn(device, new Storage(device, 1000, device.pool), own)
    }
    world.advance(50)
    model.destroyStream(idle)
    model.destroyStream(busy)
    assert.deepStrictEqual([...device.freedOn], [busy])
    model.gatherReleases(device)
    const released = world.record(device.releases, true)
    assert.isFalse(released.done)
    world.advance(100)
    assert.isTrue(released.done)
    assert.strictEqual(device.pool.used, 0)
  })
  it("moves data at the end of a copy", () => {
    const { device, model, stream, world } = make()
    const [host, memory] = [new Storage(undefined, 4), new Storage(device, 16)]
    host.touch().set([1, 2, 3, 4])
    model.copy(stream(), memory, 8, host, 0, 4)
    world.advance(3)
    assert.strictEqual(memory.touch()[8], 0)
    host.detach()
    world.advance(4)
    assert.deepStrictEqual([...memory.touch().subarray(8, 12)], [1, 2, 3, 4])
  })
  it("fills with 8-, 16- and 32-bit values", () => {
    const { device, model, stream, world } = make()
    const memory = new Storage(device, 16)
    const s = stream()
    model.fill(s, memory, 1, 0xab, 8, 1)
    model.fill(s, memory, 4, 0x1234, 16, 2)
    model.fill(s, memory, 8, 0xdeadbeef, 32, 2)
    world.advance(100)
    assert.deepStrictEqual(
      [...memory.touch()],
      [0, 0xab, 0, 0, 0x34, 0x12, 0x34, 0x12, 0xef, 0xbe, 0xad, 0xde, 0xef, 0xbe, 0xad, 0xde]
    )
  })
})

describe("waits that never end", () => {
  it("are detected once nothing else runs, with what blocks them", () => {
    const { model, stream, world } = make()
    const [hung, waiting, busy] = [stream(), stream(), stream()]
    model.work(hung, { duration: Infinity })
    model.fork(hung, [waiting])
    model.work(busy, { duration: 10 })
    const told: Array<string> = []
    model.watchStream(waiting, (status) => told.push(String(status)))
    model.decideHopeless()
    assert.strictEqual(model.decided.length, 0)
    world.advance(10)
    model.decideHopeless()
    model.tell((because) => told.push(because))
    assert.deepStrictEqual(told, [
      `stream ${waiting.id} of device 0 waits for an event recorded on stream ${hung.id} of device 0, ` +
      `and work on stream ${hung.id} of device 0 never ends`,
      String(neverFinishes)
    ])
  })
  it("names an engine held by hung work", () => {
    const { model, stream, world } = make({ concurrentKernels: 1 })
    model.work(stream(), { duration: Infinity })
    const queued = stream()
    model.work(queued, { duration: 1 })
    assert.include(becauseOf(world.record(queued, true)), "waits for compute of device 0, held by work that never ends")
  })
})

describe("growth", () => {
  const run = (operations: number): number => {
    const world = new World()
    const model = new Model(world, [{ ...plain, memory: 1e9 }])
    const device = model.devices[0]!
    const streams = Array.from({ length: 64 }, () => model.createStream(device, 0, true))
    const events = streams.map(() => new EventState())
    const [host, memory] = [new Storage(undefined, 8), new Storage(device, 8)]
    const start = performance.now()
    for (let i = 0; i < operations; i++) {
      const stream = streams[i % 64]!
      model.copy(stream, memory, 0, host, 0, 8)
      model.record(events[i % 64]!, stream)
      model.waitEvent(streams[(i * 7 + 1) % 64]!, events[i % 64]!)
      if (i % 1000 === 999) world.advance(world.now + 10_000)
    }
    world.advance(1e12)
    assert.strictEqual(world.pending, 0)
    return (performance.now() - start) / operations
  }
  it("costs the same per operation at any number of operations", () => {
    run(20_000)
    const small = Math.min(...[1, 2, 3, 4, 5].map(() => run(1_000)))
    const large = Math.min(...[1, 2].map(() => run(100_000)))
    assert.isBelow(large, 8 * small, `${small} then ${large} ms for an operation`)
  })
  it("lets 10,000 watchers wait without polling them", () => {
    const { model, stream, world } = make()
    const streams = Array.from({ length: 100 }, () => stream())
    let told = 0
    for (let i = 0; i < 10_000; i++) {
      const s = streams[i % 100]!
      model.work(s, { duration: 1 })
      model.watchStream(s, () => told++)
    }
    for (let now = 1; now <= 100; now++) {
      world.advance(now)
      model.tell(() => {})
      assert.strictEqual(told, 100 * now)
    }
    assert.strictEqual(model.waiting.size, 0)
    assert.strictEqual(model.devices[0]!.watchers.size, 0)
  })
})

const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))

const buffers = 12
const bufferSize = 8
const streamKinds = [
  { legacy: true, blocking: false },
  { legacy: false, blocking: true },
  { legacy: false, blocking: true },
  { legacy: false, blocking: false },
  { legacy: false, blocking: false },
  { legacy: false, blocking: false }
]

const Program = Schema.Array(
  Schema.Struct({
    op: Schema.Literals(["record", "record", "wait", "wait", "copy", "fill", "work"]),
    stream: between(0, streamKinds.length - 1),
    event: between(0, 3),
    to: between(0, buffers - 1),
    from: between(0, buffers - 1),
    value: between(1, 40),
    pause: between(0, 9)
  })
).check(Schema.isMaxLength(60))

const execute = (program: ReadonlyArray<Instruction>, traits: Partial<DeviceTraits>, recordTimeline = true) => {
  const { device, model, world } = makeWith(recordTimeline, [{ ...traits, memory: 1e6 }])
  const streams = streamKinds.map(({ blocking, legacy }, index) =>
    legacy ? device.legacy : model.createStream(device, -(index % 3), !blocking)
  )
  const events = Array.from({ length: 4 }, () => new EventState())
  const memory = Array.from({ length: buffers }, () => new Storage(device, bufferSize))
  const records: Array<EventRecord> = []
  const enqueue = ({ event, from, op, stream, to, value }: Instruction) => {
    const s = streams[stream]!
    if (op === "record") {
      model.record(events[event]!, s)
      records.push(events[event]!.current!)
    } else if (op === "wait") model.waitEvent(s, events[event]!)
    else if (op === "copy") model.copy(s, memory[to]!, 0, memory[from]!, 0, bufferSize)
    else if (op === "fill") model.fill(s, memory[to]!, 0, value, 8, bufferSize)
    else model.work(s, { duration: value })
  }
  let now = 0
  for (const instruction of program) {
    now += instruction.pause
    world.advance(now)
    enqueue(instruction)
  }
  world.advance(now + 1e6)
  assert.strictEqual(world.pending, 0)
  return {
    bytes: memory.map((storage) => storage.touch()[0]),
    nodes: graph(program, streamKinds),
    model,
    records,
    streams
  }
}

/** The model's result for each node: a stream's operations end in the order of its instructions. */
const observed = ({ model, nodes, streams }: ReturnType<typeof execute>) => {
  const queues = streams.map(({ id }) => model.timeline!.filter(({ streamId }) => streamId === id))
  return nodes.map(({ instruction }) => queues[instruction.stream]!.shift()!)
}

const durationOf = ({ op, value }: Instruction): number => {
  if (op === "work") return value
  return op === "copy" || op === "fill" ? bufferSize : 0
}

const assertContents = ({ bytes, nodes }: ReturnType<typeof execute>) => {
  for (const [buffer, byte] of contents(nodes, buffers).entries()) {
    if (byte !== undefined) assert.strictEqual(bytes[buffer], byte, `buffer ${buffer}`)
  }
}

const distinct = (program: ReadonlyArray<Instruction>) =>
  program.filter(({ from, op, to }) => op !== "copy" || from !== to)

describe("random programs", () => {
  it.prop("start and end exactly when the graph says, with enough engines", [Program], ([drawn]) => {
    const result = execute(distinct(drawn), { concurrentKernels: 1_000_000 })
    const expected = schedule(result.nodes, durationOf)
    for (const [index, entry] of observed(result).entries()) {
      const { op } = result.nodes[index]!.instruction
      assert.strictEqual(entry.end, expected[index]!.end, `end of ${op} ${index}`)
      if (op !== "wait") assert.strictEqual(entry.start, expected[index]!.start, `start of ${op} ${index}`)
    }
    assertContents(result)
  }, { arbitrary: { runs: 300, size: 60 } })

  it.prop(
    "mean the same without a timeline, where operations that take no time are not enqueued",
    [Program],
    ([drawn]) => {
      const result = execute(distinct(drawn), { concurrentKernels: 1_000_000 }, false)
      const expected = schedule(result.nodes, durationOf)
      assert.deepStrictEqual(
        result.records.map(({ time }) => time),
        result.nodes.filter(({ instruction }) => instruction.op === "record").map(({ index }) => expected[index]!.end)
      )
      assertContents(result)
    },
    { arbitrary: { runs: 300, size: 60 } }
  )

  it.prop("keep every promised order and leave no slot idle, with few engines", [Program], ([drawn]) => {
    const slots = 2
    const result = execute(distinct(drawn), { concurrentKernels: slots })
    const entries = observed(result)
    const timed = result.nodes.filter(({ instruction }) => durationOf(instruction) > 0)
    const readyAt = ({ at, dependencies }: Node) => Math.max(at, ...Array.from(dependencies, (i) => entries[i]!.end))
    for (const node of timed) {
      const [entry, ready] = [entries[node.index]!, readyAt(node)]
      assert.strictEqual(entry.end - entry.start, durationOf(node.instruction))
      assert.isAtLeast(entry.start, ready)
      for (const moment of [ready, ...entries.map(({ end }) => end)]) {
        if (moment < ready || moment >= entry.start) continue
        const running = timed.filter(({ index }) => entries[index]!.start <= moment && moment < entries[index]!.end)
        assert.strictEqual(running.length, slots, `a slot is free at ${moment} while operation ${node.index} is ready`)
      }
      for (const other of timed) {
        const overtaken = readyAt(other) < entry.start && entries[other.index]!.start > entry.start
        const [mine, its] = [node, other].map(({ instruction }) => result.streams[instruction.stream]!.priority)
        if (overtaken) assert.isAtMost(mine!, its!, `operation ${node.index} overtakes ${other.index}`)
      }
    }
    assertContents(result)
  }, { arbitrary: { runs: 300, size: 60 } })
})
