/**
 * The timer of a simulated runtime: a fiber that exists only while there are waits. It sleeps until the next operation ends,
 * advances the world to that time, and ends the waits that are over.
 *
 * Timers of the system have a resolution of a millisecond, which is long for a GPU. So with the system's clock, the fiber polls on every
 * turn of the event loop shortly before operations end, but only for a while if no wait ends: then it waits for many operations.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { Model } from "./Model.ts"
import type { ClockedWorld } from "./worlds.ts"

/** How early a sleep may end, in nanoseconds. Clocks with fractional milliseconds round. */
const tolerance = 1000

/** How late a timer of the system may be, in nanoseconds. Later ones make a wait longer. */
const lateness = 2e6

/** How long it polls at most, in nanoseconds, until a wait begins or ends. */
const patience = 2e6

const systemClock = Context.get(Context.empty(), Clock.Clock)

/** Passes turns of the event loop until it is time. */
const turnsUntil = (isTime: () => boolean): Effect.Effect<void> =>
  Effect.callback((resume) => {
    const look = () => {
      if (isTime()) resume(Effect.void)
      else next = setImmediate(look)
    }
    let next = setImmediate(look)
    return Effect.sync(() => clearImmediate(next))
  })

export class Pacer {
  readonly #model: Model
  readonly #clock: Clock.Clock
  readonly #world: ClockedWorld
  readonly #fork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
  readonly #because: (text: string) => void
  /** When the fiber will wake; infinite without a fiber. */
  #due = Infinity
  #fiber: Fiber.Fiber<void> | undefined
  #firing = false
  #stopped = false
  /** Nanoseconds left to poll. */
  #patience = patience

  constructor(
    model: Model,
    clock: Clock.Clock,
    world: ClockedWorld,
    context: Context.Context<never>,
    because: (text: string) => void
  ) {
    this.#model = model
    this.#clock = clock
    this.#world = world
    this.#fork = Effect.runForkWith(context)
    this.#because = because
    model.wake = () => this.arm()
  }

  /** Makes the fiber wake in time for the current waits. */
  arm(): void {
    this.#patience = patience
    if (this.#firing || this.#stopped) return
    const due = this.#nextDue()
    if (due >= this.#due) return
    this.#fiber?.interruptUnsafe()
    this.#due = due
    this.#fiber = this.#fork(this.#run)
  }

  /** Ends the fiber once there are no waits, so that it does not keep the process alive. */
  relax(): void {
    if (this.#firing || this.#model.waiting.size > 0 || this.#model.decided.length > 0) return
    this.#due = Infinity
    this.#fiber?.interruptUnsafe()
    this.#fiber = undefined
  }

  stop(): void {
    this.#stopped = true
    this.#fiber?.interruptUnsafe()
  }

  #nextDue(): number {
    const { decided, waiting, world } = this.#model
    if (decided.length > 0) return world.now
    if (waiting.size === 0) return Infinity
    const next = Math.min(world.nextTime(), world.letGoTime)
    return next === Infinity ? world.now : next
  }

  readonly #run: Effect.Effect<void> = Effect.suspend(() => {
    const wait = Math.ceil(this.#due - this.#world.now())
    if (this.#clock === systemClock && wait > 0) return Effect.andThen(this.#approach(wait), this.#run)
    return Effect.flatMap(wait > 0 ? this.#sleep(wait) : Effect.yieldNow, () => {
      this.#fire(this.#due)
      return this.#due === Infinity || this.#stopped ? Effect.void : this.#run
    })
  })

  /** Passes a part of a wait. */
  #approach(wait: number): Effect.Effect<void> {
    if (wait > lateness) {
      this.#patience = patience
      return this.#sleep(wait - lateness)
    }
    return this.#patience > 0 ? this.#poll() : this.#sleep(wait)
  }

  #poll(): Effect.Effect<void> {
    const start = this.#world.now()
    const end = Math.min(this.#due, start + this.#patience)
    return Effect.map(turnsUntil(() => this.#world.now() >= end), () => {
      this.#patience -= this.#world.now() - start
    })
  }

  #sleep(nanos: number): Effect.Effect<void> {
    return this.#clock.sleep(Duration.nanos(BigInt(nanos)))
  }

  #fire(due: number): void {
    const now = this.#world.now()
    this.#firing = true
    this.#model.world.advance(now < due && due - now <= tolerance ? due : now)
    this.#model.world.letGoDue()
    this.#model.decideHopeless()
    this.#model.tell(this.#because)
    this.#firing = false
    this.#due = this.#stopped ? Infinity : this.#nextDue()
  }
}
