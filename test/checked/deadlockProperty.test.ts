/**
 * Random accesses inside each other, compared with an oracle: the runtime's own order of accesses, with fibers that end all they hold as
 * soon as they can. Fibers that cannot are in a deadlock.
 */
import { assert, describe, it } from "@effect/vitest"
import { nullHandle, offsetBy } from "../../src/cuda/handles.ts"
import type { CUdeviceptr } from "../../src/cuda/handles.ts"
import { Timelines } from "../../src/layers/checked/timelines.ts"
import { Turn, Turns } from "../../src/layers/checked/Turns.ts"
import type { MemoryRef } from "../../src/layers/CudaRuntime.ts"
import { Access, Ordering, Track } from "../../src/layers/shared/ordering.ts"
import type { Markers } from "../../src/layers/shared/ordering.ts"
import { StreamResource } from "../../src/layers/shared/resources.ts"
import { makeRandom } from "../support/random.ts"

const bufferSize = 8

interface Part {
  readonly buffer: number
  readonly from: number
  readonly to: number
  readonly writes: boolean
}

/** A fiber begins an access inside those that it holds, or ends the innermost. */
type Step =
  | { readonly do: "begin"; readonly fiber: number; readonly stream: number; readonly parts: ReadonlyArray<Part> }
  | { readonly do: "end"; readonly fiber: number }

const markers: Markers = {
  made: { deviceIndex: 0 },
  record: () => 0,
  wait: () => 0,
  query: () => 0,
  release: () => {}
}

/** The runtime's order. */
class Oracle {
  readonly #tracks: ReadonlyArray<Track>
  readonly #orderings: ReadonlyArray<Ordering>
  readonly #held: ReadonlyArray<Array<Access>>

  constructor(fibers: number, streams: number, buffers: number) {
    this.#held = Array.from({ length: fibers }, () => [])
    this.#orderings = Array.from({ length: buffers }, () => new Ordering())
    this.#tracks = Array.from({ length: streams }, (_, id) =>
      new Track(
        new StreamResource({ kind: "simulated" }, {
          handle: nullHandle(),
          id: id + 16,
          deviceIndex: 0,
          priority: 0,
          nonBlocking: true,
          origin: "owned"
        })
      ))
  }

  isBlocked(fiber: number): boolean {
    return this.#held[fiber]!.at(-1)?.isBlocked === true
  }

  begin(fiber: number, stream: number, parts: ReadonlyArray<Part>): void {
    const held = this.#held[fiber]!
    const own = parts.map(({ buffer, ...bytes }) => ({ ordering: this.#orderings[buffer]!, ...bytes }))
    const access = new Access(this.#tracks[stream]!, own, new Set(held))
    held.push(access)
    if (!access.isBlocked) access.begin(markers)
    else access.onTurn = () => access.begin(markers)
  }

  end(fiber: number): void {
    this.#held[fiber]!.pop()?.end(markers)
  }

  /** Whether some fibers can never go on. Ends everything. */
  get isDead(): boolean {
    let goesOn = true
    while (goesOn) {
      goesOn = false
      for (const [fiber, held] of this.#held.entries()) {
        if (held.length === 0 || this.isBlocked(fiber)) continue
        while (held.length > 0) this.end(fiber)
        goesOn = true
      }
    }
    return this.#held.some((held) => held.length > 0)
  }
}

/** The checker, driven as the layer drives it. */
class Driven {
  readonly #turns = new Turns()
  readonly #timelines
  readonly #buffers: ReadonlyArray<MemoryRef>
  readonly #held: ReadonlyArray<Array<Turn>>
  inverted = 0

  constructor(fibers: number, streams: number, buffers: number) {
    const timelines = new Timelines()
    const fields = { deviceIndex: 0, isBlocking: false, isLegacy: false, isForeign: false }
    this.#held = Array.from({ length: fibers }, () => [])
    this.#timelines = Array.from({ length: streams }, (_, index) => timelines.make({ name: `${index}`, ...fields }))
    this.#buffers = Array.from({ length: buffers }, (_, index) => ({
      kind: "device",
      address: offsetBy(nullHandle<CUdeviceptr>(), 0x1000 * (index + 1)),
      byteLength: bufferSize,
      isOrdered: true,
      isManaged: false,
      isGrowable: false,
      deviceIndex: 0,
      state: "live"
    }))
  }

  isBlocked(fiber: number): boolean {
    return (this.#held[fiber]!.at(-1)?.blockers.size ?? 0) > 0
  }

  /** Whether that is a deadlock. */
  begin(fiber: number, stream: number, parts: ReadonlyArray<Part>): boolean {
    const held = this.#held[fiber]!
    const uses = parts.map(({ buffer, from, to, writes }) => ({
      memory: this.#buffers[buffer]!,
      offset: from,
      byteLength: to - from,
      kind: writes ? "writes" as const : "reads" as const,
      argument: undefined
    }))
    const turn = new Turn(fiber, this.#timelines[stream]!, uses, new Set(held), undefined)
    held.push(turn)
    this.#turns.add(turn)
    if (this.#turns.orders.add(turn) !== undefined) this.inverted++
    if (turn.blockers.size > 0) return this.#turns.deadlockOf(turn) !== undefined
    this.#turns.begun(turn)
    return false
  }

  end(fiber: number): void {
    const turn = this.#held[fiber]!.pop()
    if (turn === undefined) return
    this.#turns.end(turn)
    for (const held of this.#held) {
      const last = held.at(-1)
      if (last !== undefined && !last.hasBegun && last.blockers.size === 0) this.#turns.begun(last)
    }
  }

  endAll(): void {
    for (const [fiber, held] of this.#held.entries()) while (held.length > 0) this.end(fiber)
  }

  get size(): number {
    return this.#turns.size
  }
}

const play = (subject: Oracle | Driven, step: Step): void => {
  if (step.do === "end") subject.end(step.fiber)
  else subject.begin(step.fiber, step.stream, step.parts)
}

describe("random accesses inside each other", () => {
  it("are in the deadlocks that an oracle finds, and in no others", () => {
    let deadlocks = 0
    let waits = 0
    let foretold = 0
    for (let seed = 1; seed <= 10_000; seed++) {
      const random = makeRandom(seed)
      const [fibers, streams, buffers] = [2 + random(3), 1 + random(3), 1 + random(3)] as const
      const part = (): Part => {
        const from = random(2) === 0 ? 0 : random(bufferSize)
        const to = from + 1 + random(bufferSize - from)
        return { buffer: random(buffers), from, to, writes: random(3) > 0 }
      }
      const steps: Array<Step> = []
      const driven = new Driven(fibers, streams, buffers)
      const oracle = new Oracle(fibers, streams, buffers)
      for (let count = 0; count < 20; count++) {
        const fiber = random(fibers)
        // A fiber that waits does nothing.
        assert.strictEqual(driven.isBlocked(fiber), oracle.isBlocked(fiber), `seed ${seed}`)
        if (oracle.isBlocked(fiber)) continue
        const step: Step = random(3) === 0
          ? { do: "end", fiber }
          : { do: "begin", fiber, stream: random(streams), parts: Array.from({ length: 1 + random(2) }, part) }
        steps.push(step)
        play(oracle, step)
        if (step.do === "end") {
          driven.end(step.fiber)
          continue
        }
        const found = driven.begin(step.fiber, step.stream, step.parts)
        if (oracle.isBlocked(fiber)) waits++
        const again = new Oracle(fibers, streams, buffers)
        for (const one of steps) play(again, one)
        const expected = again.isDead
        assert.strictEqual(found, expected, `seed ${seed}\n${JSON.stringify(steps)}`)
        if (!found) continue
        deadlocks++
        if (driven.inverted > 0) foretold++
        break
      }
      driven.endAll()
      assert.strictEqual(driven.size, 0)
    }
    assert.isAbove(deadlocks, 500)
    assert.isAbove(waits, 2 * deadlocks)
    // Most deadlocks are also inverted orders; not those in which a fiber waits behind another one that waits.
    assert.isAbove(foretold, deadlocks / 2)
  })
})
