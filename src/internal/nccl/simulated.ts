/**
 * Communicators of simulated devices: ranks of one process meet, and their bytes really move.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import { invalidArgument } from "../../CudaError.ts"
import type { CudaError } from "../../CudaError.ts"
import { ForeignWait } from "../../layers/CudaRuntime.ts"
import type { ForeignRest } from "../../layers/CudaRuntime.ts"
import type { Plan } from "./collective.ts"
import { combine } from "./numbers.ts"

/** What a collective takes beside the time of its bytes, as on an H200, in nanoseconds. */
const latency = 19_000

/** A collective of one rank whose stream has reached it. */
interface Arrival {
  readonly plan: Plan
  readonly from: Uint8Array | undefined
  readonly to: Uint8Array | undefined
  /** Called when all ranks are there. */
  readonly ready: (move: () => void, linkBytes: number) => void
}

const isPointToPoint = ({ kind }: Plan): boolean => kind === "send" || kind === "receive"

/** Where the ranks of a communicator meet. Their collectives are matched by their order on the devices. */
export class Meetings {
  readonly size: number
  readonly #collectives: Array<Map<number, Arrival>> = []
  /** How many collectives each rank has reached, and how many have gathered. */
  readonly #reached: Array<number>
  #gathered = 0
  /** By sender and receiver. */
  readonly #sent = new Map<string, Array<Arrival>>()
  readonly #expected = new Map<string, Array<Arrival>>()
  /** Ends what a rank waits for, by rank. */
  readonly #waiting = new Map<number, Set<() => void>>()
  /** How often each rank has come to split or shrink. */
  readonly #calls: Array<number>
  readonly #agreements = new Map<string, Agreement>()

  constructor(size: number) {
    this.size = size
    this.#reached = Array.from({ length: size }, () => 0)
    this.#calls = Array.from({ length: size }, () => 0)
  }

  /** Takes part in collectives that were issued together: the stream goes on when all of them are done. */
  meet(plans: ReadonlyArray<Plan>, bytesOf: (plan: Plan) => Pick<Arrival, "from" | "to">): ForeignWait {
    const { rank } = plans[0]!.communicator
    return new ForeignWait(waitsFor(plans), (resume) => {
      const waiting = this.#waiting.get(rank) ?? new Set()
      this.#waiting.set(rank, waiting)
      const moves: Array<() => void> = []
      let linkBytes = 0
      const end = (rest: ForeignRest) => {
        waiting.delete(leave)
        resume(rest)
      }
      const leave = () => end({ nanoseconds: 0, linkBytes: 0, act: () => {} })
      waiting.add(leave)
      for (const plan of plans) {
        this.#arrive({
          plan,
          ...bytesOf(plan),
          ready: (move, bytes) => {
            moves.push(move)
            linkBytes += bytes
            if (moves.length < plans.length) return
            end({ nanoseconds: latency, linkBytes, act: () => moves.forEach((move) => move()) })
          }
        })
      }
    })
  }

  #arrive(arrival: Arrival): void {
    if (isPointToPoint(arrival.plan)) this.#pair(arrival)
    else this.#gather(arrival)
  }

  #pair(arrival: Arrival): void {
    const { communicator: { rank }, kind, other } = arrival.plan
    const isSend = kind === "send"
    const route = isSend ? `${rank} ${other}` : `${other} ${rank}`
    const [own, others] = isSend ? [this.#sent, this.#expected] : [this.#expected, this.#sent]
    const match = others.get(route)?.shift()
    if (match === undefined) {
      own.set(route, [...own.get(route) ?? [], arrival])
      return
    }
    const [sent, received] = isSend ? [arrival, match] : [match, arrival]
    agree([sent, received])
    const move = once(() => received.to!.set(sent.from!))
    for (const { ready } of [sent, received]) ready(move, sent.from!.byteLength)
  }

  #gather(arrival: Arrival): void {
    const { rank } = arrival.plan.communicator
    const at = this.#reached[rank]++ - this.#gathered
    const arrivals = this.#collectives[at] ??= new Map()
    arrivals.set(rank, arrival)
    while (this.#collectives[0]?.size === this.size) {
      const all = this.#collectives.shift()!
      this.#gathered++
      finish(Array.from({ length: this.size }, (_, index) => all.get(index)!))
    }
  }

  /** Lets the streams of a rank go on without what they wait for. */
  leave(rank: number): void {
    const waiting = this.#waiting.get(rank)
    for (const end of waiting ?? []) end()
  }

  /** Waits until the ranks have come that have to agree, and returns what each has said. Calls are matched by their order. */
  agree(rank: number, ranks: ReadonlyArray<number>, said: Said): Effect.Effect<AgreementResult> {
    return Effect.suspend(() => {
      const key = `${ranks.join(" ")} ${this.#calls[rank]++}`
      const agreement = this.#agreements.get(key) ?? new Agreement(ranks)
      this.#agreements.set(key, agreement)
      return agreement.join(rank, said)
    })
  }
}

/** What a rank says when it splits or shrinks. */
export interface Said {
  readonly color: number | undefined
  readonly key: number
}

interface AgreementResult {
  readonly said: ReadonlyMap<number, Said>
  /** The meetings of the communicator of a color. */
  readonly meetingsOf: (color: number, size: number) => Meetings
}

class Agreement {
  readonly #ranks: ReadonlyArray<number>
  readonly #said = new Map<number, Said>()
  readonly #done = Deferred.makeUnsafe<AgreementResult>()
  readonly #meetings = new Map<number, Meetings>()
  constructor(ranks: ReadonlyArray<number>) {
    this.#ranks = ranks
  }
  join(rank: number, said: Said): Effect.Effect<AgreementResult> {
    this.#said.set(rank, said)
    if (this.#ranks.every((other) => this.#said.has(other))) {
      const meetingsOf = (color: number, size: number): Meetings => {
        const known = this.#meetings.get(color) ?? new Meetings(size)
        this.#meetings.set(color, known)
        return known
      }
      Deferred.doneUnsafe(this.#done, Effect.succeed({ said: this.#said, meetingsOf }))
    }
    return Deferred.await(this.#done).pipe(Effect.onInterrupt(() => Effect.sync(() => this.#said.delete(rank))))
  }
}

const once = (run: () => void): () => void => {
  let isDone = false
  return () => {
    if (isDone) return
    isDone = true
    run()
  }
}

const waitsFor = (plans: ReadonlyArray<Plan>): string => {
  const [{ communicator, kind, other }] = plans as readonly [Plan]
  if (plans.length > 1) return `the other ranks of ${plans.length} collectives of the ${communicator}`
  if (kind === "send") return `rank ${other} to receive from the ${communicator}`
  return kind === "receive"
    ? `rank ${other} to send to the ${communicator}`
    : `the other ranks of a collective of the ${communicator}`
}

const describe = ({ count, kind, operator, other, type }: Plan): string =>
  isPointToPoint({ kind } as Plan) ? `${count} ${type}` : `${kind} of ${count} ${type} (${operator}, root ${other})`

/** Native ranks that disagree hang, or get wrong bytes. */
const agree = (arrivals: ReadonlyArray<Arrival>): void => {
  const [first, ...others] = arrivals
  for (const { plan } of others) {
    const [one, other] = [describe(first!.plan), describe(plan)]
    if (one === other) continue
    const ranks = [first!.plan.communicator.rank, plan.communicator.rank]
    throw new Error(`the ranks disagree: rank ${ranks[0]} has ${one}, rank ${ranks[1]} has ${other}`)
  }
}

/** Moves the bytes of a collective that all ranks have reached. By rank. */
const finish = (arrivals: ReadonlyArray<Arrival>): void => {
  agree(arrivals)
  const move = once(() => moveAll(arrivals))
  const bytes = linkBytesOf(arrivals)
  for (const { ready } of arrivals) ready(move, bytes)
}

/** What each link carries, with the algorithms that need the least. */
const linkBytesOf = (arrivals: ReadonlyArray<Arrival>): number => {
  const { from, plan, to } = arrivals[0]!
  const ranks = arrivals.length
  const bytes = Math.min(from?.byteLength ?? Infinity, to?.byteLength ?? Infinity)
  if (ranks === 1) return 0
  if (plan.kind === "allReduce") return (2 * bytes * (ranks - 1)) / ranks
  return plan.kind === "allGather" || plan.kind === "reduceScatter" ? bytes * (ranks - 1) : bytes
}

const moveAll = (arrivals: ReadonlyArray<Arrival>): void => {
  const { kind, operator, other, type } = arrivals[0]!.plan
  const sources = arrivals.map(({ from }) => from!)
  switch (kind) {
    case "allReduce": {
      const result = combine(type, operator, sources)
      for (const { to } of arrivals) to!.set(result)
      return
    }
    case "reduce":
      return arrivals[other]!.to!.set(combine(type, operator, sources))
    case "broadcast": {
      const sent = sources[other]!.slice()
      for (const { to } of arrivals) to!.set(sent)
      return
    }
    case "allGather": {
      const gathered = sources.map((source) => source.slice())
      for (const { to } of arrivals) gathered.forEach((bytes, rank) => to!.set(bytes, rank * bytes.byteLength))
      return
    }
    case "reduceScatter": {
      const result = combine(type, operator, sources)
      arrivals.forEach(({ to }, rank) => {
        const { byteLength } = to!
        to!.set(result.subarray(rank * byteLength, (rank + 1) * byteLength))
      })
      return
    }
    case "send":
    case "receive":
      return
  }
}

/** A communicator whose ranks are joining. */
interface Joining {
  readonly size: number
  readonly ranks: Set<number>
  readonly meetings: Meetings
  readonly done: Deferred.Deferred<Meetings>
}

/** Where ranks find each other, by the id of their communicator. */
export class Rendezvous {
  readonly #joining = new Map<string, Joining>()

  join(operation: string, id: Uint8Array, rank: number, size: number): Effect.Effect<Meetings, CudaError> {
    return Effect.suspend(() => {
      const key = id.join(" ")
      const joining = this.#joining.get(key) ??
        { size, ranks: new Set(), meetings: new Meetings(size), done: Deferred.makeUnsafe<Meetings>() }
      if (joining.size !== size) {
        return Effect.fail(invalidArgument(operation, "size", size, `${joining.size}, as the other ranks have it`))
      }
      if (joining.ranks.has(rank)) {
        return Effect.fail(invalidArgument(operation, "rank", rank, "a rank that has not joined"))
      }
      this.#joining.set(key, joining)
      joining.ranks.add(rank)
      if (joining.ranks.size === size) {
        this.#joining.delete(key)
        Deferred.doneUnsafe(joining.done, Effect.succeed(joining.meetings))
      }
      return Deferred.await(joining.done).pipe(
        Effect.onInterrupt(() => Effect.sync(() => joining.ranks.delete(rank)))
      )
    })
  }
}

/** The bytes of the parts of plans, which the simulation is given in the order of their plans. */
export const bytesOfPlans = (
  plans: ReadonlyArray<Plan>,
  reads: ReadonlyArray<Uint8Array>,
  writes: ReadonlyArray<Uint8Array>
): ReadonlyMap<Plan, Pick<Arrival, "from" | "to">> => {
  let [read, written] = [0, 0]
  return new Map(plans.map((plan) => [plan, {
    from: plan.from === undefined ? undefined : reads[read++],
    to: plan.to === undefined ? undefined : writes[written++]
  }]))
}
