/**
 * One run of a program under a schedule, and what came of it.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import { printWhere } from "../../checked/explain.ts"
import { currentFrame, lineOf, orFrame, Watcher } from "../../checked/Watcher.ts"
import { wrap } from "../../checked/wrap.ts"
import type { CudaRuntimeService, MemoryRef } from "../../CudaRuntime.ts"
import { around } from "../../runtime/operations.ts"
import type { OperationCall, OperationMember } from "../../runtime/operations.ts"
import type { Storage } from "../../simulated/model/Storage.ts"
import type { World } from "../../simulated/model/World.ts"
import { worldOf } from "../../simulated/model/worlds.ts"
import {
  memoryPart,
  SimulatedDeviceMemory,
  SimulatedHostMemory,
  SimulatedManagedMemory
} from "../../simulated/resources.ts"
import { runFresh } from "../fresh.ts"
import type { Fresh, Provided } from "../fresh.ts"
import { virtual } from "../VirtualTime.ts"
import { Director } from "./Director.ts"
import type { Ran } from "./Director.ts"
import { Follower } from "./Follower.ts"
import type { Pair } from "./Follower.ts"
import { printPlan, undisturbed } from "./holds.ts"
import type { Plan } from "./holds.ts"
import { contentsOf, endOf } from "./outcomes.ts"
import type { Contents, Outcome } from "./outcomes.ts"

/** What all runs of an exploration have in common. */
export interface Setting<A, E, R, ROut, ELayer, RIn> extends Fresh<A, E, R, ROut, ELayer, RIn> {
  /** Nanoseconds. */
  readonly patience: number
  readonly project: (value: A) => unknown
  readonly comparesBytes: boolean
}

/** A run that is over. */
export interface Observed<A, E> {
  readonly plan: Plan
  readonly exit: Exit.Exit<A, E> | undefined
  readonly outcome: Outcome
  readonly pairs: ReadonlyArray<Pair>
  readonly ran: ReadonlyArray<Ran>
  /** Works that were held and had to start before what they were held for. */
  readonly letGo: ReadonlyArray<string>
  /** The schedule as text. */
  readonly text: string
  readonly operations: number
  /** Whether the runtime is simulated, so that the schedule had an effect. */
  readonly isSimulated: boolean
  readonly log: ReadonlyArray<string>
  /** The place of the end of a work among all ends. */
  readonly placeOf: (name: string) => number | undefined
  readonly labelOf: (name: string) => string | undefined
}

/** The operations that make memory. */
const allocating: ReadonlySet<OperationMember> = new Set([
  "memoryAllocate",
  "managedAllocate",
  "hostAllocate",
  "hostPin"
])

/** The call that made a buffer, and where it is in the program. */
interface Made {
  readonly name: string
  readonly where: () => string | undefined
}

/** Collects the last contents of the buffers that a program makes. */
class Finals {
  readonly contents = new Map<string, Contents>()
  readonly #live = new Map<Storage, Made>()
  readonly #counts = new Map<string, number>()
  readonly #hasLines: boolean

  constructor(hasLines: boolean) {
    this.#hasLines = hasLines
  }

  wrap(runtime: CudaRuntimeService): CudaRuntimeService {
    return around(runtime, ({ member, name }, call) => allocating.has(member) ? this.#watch(name, call) : call)
  }

  #watch(operation: string, call: OperationCall): OperationCall {
    const watching: OperationCall = (...args) => {
      const line = this.#hasLines ? lineOf(watching) : undefined
      const count = (this.#counts.get(operation) ?? 0) + 1
      this.#counts.set(operation, count)
      return Effect.suspend(() => {
        const where = line && orFrame(line, currentFrame())
        const made = { name: `${operation}, call ${count}`, where: () => printWhere(where) }
        return Effect.map(call(...args), (memory) => {
          const storage = storageOf(memory as MemoryRef)
          if (storage !== undefined) this.#add(storage, made)
          return memory
        })
      })
    }
    return watching
  }

  #add(storage: Storage, made: Made): void {
    this.#live.set(storage, made)
    storage.atEnd = (bytes) => {
      this.#live.delete(storage)
      this.contents.set(made.name, contentsOf(bytes, storage.byteLength, made.where))
    }
  }

  /** Takes the contents of the buffers that are left. */
  finish(): void {
    for (const [storage, { name, where }] of this.#live) {
      storage.atEnd = undefined
      this.contents.set(name, contentsOf(storage.contents, storage.byteLength, where))
    }
    this.#live.clear()
  }
}

/** The storage of simulated memory; undefined for memory that only exists inside a recording. */
const storageOf = (memory: MemoryRef): Storage | undefined =>
  memory instanceof SimulatedDeviceMemory || memory instanceof SimulatedHostMemory ||
    memory instanceof SimulatedManagedMemory
    ? memoryPart(memory)
    : undefined

/** Runs what is left, however it is held. */
const drain = (world: World): void => world.runUntil(() => false)

/** As many operations as no run of a program has that does not go on forever. */
const mostOperations = (undisturbed: number): number => 20 * undisturbed + 10_000

/** Runs a program once under a schedule. Fails if there is no runtime. */
export const runWith = <A, E, R, ROut, ELayer, RIn>(
  setting: Setting<A, E, R, ROut, ELayer, RIn>,
  plan: Plan,
  undisturbedOperations: number
): Effect.Effect<Observed<A, E>, ELayer, RIn | Provided<R, ROut>> =>
  Effect.gen(function*() {
    const time = yield* virtual
    const { now, world } = worldOf(Context.get(time.context, Clock.Clock))
    const director = new Director(world, plan, {
      now,
      patience: setting.patience,
      mostOperations: mostOperations(undisturbedOperations)
    })
    const follower = new Follower(director)
    // Lines of the program take longer than the run, and those of the undisturbed run are enough.
    const finals = new Finals(plan === undisturbed)
    world.schedule = director
    let outcome: Outcome | undefined
    let isSimulated = true
    const ended = yield* runFresh(setting, time, {
      before: (runtime) =>
        Effect.sync(() => {
          isSimulated = runtime.kind === "simulated"
          const watcher = new Watcher({
            mode: "collect",
            stacks: plan === undisturbed,
            events: false,
            hostAccess: true,
            accessOrder: false,
            hostWrites: undefined,
            ignore: undefined,
            onReport: undefined,
            tracer: follower
          })
          const wrapped = wrap(runtime, watcher)
          return setting.comparesBytes ? finals.wrap(wrapped) : wrapped
        }),
      started: (interrupt) => {
        director.interrupt = interrupt
      },
      after: (_, exit) =>
        Effect.sync(() => {
          const isOver = exit !== undefined && !director.isRestless
          // Taken now, before what the program returned is released with the runtime.
          outcome = { end: endOf(isOver ? exit : undefined, setting.project), buffers: finals.contents }
          drain(world)
          finals.finish()
        })
    })
    const isOver = ended.exit !== undefined && !director.isRestless && ended.hung.length === 0
    return {
      plan,
      exit: isOver ? ended.exit : undefined,
      outcome: isOver && outcome !== undefined
        ? outcome
        : { end: endOf<A, E>(undefined, setting.project), buffers: new Map() },
      pairs: follower.pairs,
      ran: director.ran,
      letGo: director.letGoes,
      text: printPlan(plan, (name) => director.labelOf(name)),
      operations: director.ran.length,
      isSimulated,
      log: ended.log,
      placeOf: (name) => director.placeOf(name),
      labelOf: (name) => director.labelOf(name)
    }
  })
