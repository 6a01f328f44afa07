/**
 * The state shared by the parts of the simulated backend: the devices in virtual time, the last call, and the watches that
 * the pacer ends. Every call of a part begins here, which first advances virtual time to the present.
 */
import type * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import { notReady, statuses, success } from "../../cuda/status.ts"
import type { Explanation } from "../shared/Backend.ts"
import type { Owner } from "../shared/resources.ts"
import type { Cancel, DriverFailure, OnDone } from "../shared/waits.ts"
import { Model } from "./model/Model.ts"
import { Pacer } from "./model/Pacer.ts"
import { Fault } from "./model/parts.ts"
import type { Device, EventRecord } from "./model/parts.ts"
import { worldOf } from "./model/worlds.ts"
import type { ClockedWorld } from "./model/worlds.ts"
import type { ResolvedOptions } from "./options.ts"

export class SimulatedDriver {
  /** The owner of the resources that the parts create. */
  readonly owner: Owner
  readonly options: ResolvedOptions
  readonly model: Model
  readonly pacer: Pacer
  /** The driver call that the last status came from. */
  call = ""
  /** Why the last wait that failed with `neverFinishes` can never end. */
  because = ""
  /** Why the last symbol lookup failed. */
  missing = ""
  #fault: (Explanation & { readonly status: number }) | undefined
  readonly #world: ClockedWorld
  readonly #explain = (because: string): void => {
    this.because = because
  }

  constructor(owner: Owner, options: ResolvedOptions, clock: Clock.Clock, context: Context.Context<never>) {
    this.owner = owner
    this.options = options
    this.#world = worldOf(clock)
    const traits = options.devices.map((device) => device.traits)
    this.model = new Model(this.#world.world, traits, options.recordTimeline, options.hasData)
    this.model.linkBandwidth = options.linkBandwidth
    this.pacer = new Pacer(this.model, clock, this.#world, context, this.#explain)
  }

  /** Advances virtual time to the present, and returns it in nanoseconds. */
  now(): number {
    const { world } = this.#world
    world.advance(this.#world.now())
    return world.now
  }

  /** Begins a driver call on a device. Returns 0, or the fault that destroyed the device's context. */
  begin(call: string, device: Device): number {
    this.call = call
    this.#world.world.advance(this.#world.now())
    return device.lost
  }

  /** The answer to a query of unfinished work. */
  notReady(): number {
    this.#world.world.polled()
    return notReady
  }

  device(ordinal: number): Device {
    return this.model.devices[ordinal]!
  }

  /** Reports when a record is complete. */
  watch(record: EventRecord, onDone: OnDone): Cancel {
    const watcher = this.model.watchRecord(record, onDone)
    if (watcher === undefined) return noCancel
    this.pacer.arm()
    return () => {
      this.model.world.unwatch(watcher)
      this.pacer.relax()
    }
  }

  /** Begins a call, and reports when its record is complete. Reports immediately after a fault, or if there is no record. */
  watchAfter(call: string, device: Device, onDone: OnDone, recordOf: () => EventRecord | undefined): Cancel {
    const status = this.begin(call, device)
    const record = status === success ? recordOf() : undefined
    if (record !== undefined) return this.watch(record, onDone)
    onDone(status)
    return noCancel
  }

  /** Runs the program's code for a device. If it throws, the error explains the failures after the fault that follows. */
  runCode<A>(what: string, code: () => A): A {
    try {
      const result = code()
      refusePromise(result)
      return result
    } catch (error) {
      const isFault = error instanceof Fault
      this.#fault = {
        status: isFault ? error.status : statuses.LaunchFailed.code,
        detail: isFault ? `${what} ended in ${error.message}.` : `${what} threw ${print(error)}.`,
        cause: error
      }
      throw error
    }
  }

  /** Additional information about the status that a call just returned. */
  explain(status: number): Explanation | undefined {
    if (status === statuses.NotFound.code) return { detail: this.missing }
    if (this.#fault?.status !== status) return undefined
    const { cause, detail } = this.#fault
    return { cause, detail }
  }

  /** Ends the waits that are over, without waiting for the next turn of the event loop. */
  settle(): void {
    this.now()
    this.model.tell(this.#explain, true)
  }

  /** Destroys the context of a device. */
  lose(deviceIndex: number, status: number): void {
    this.now()
    this.model.world.lose(this.device(deviceIndex), status)
    this.pacer.arm()
  }

  /** The failure of the asynchronous call in progress. */
  fail(status: number): Effect.Effect<never, DriverFailure> {
    return Effect.fail({ call: this.call, status })
  }
}

/** TypeScript accepts an async function where no result is expected. Its later failure would be lost, or end the process. */
const refusePromise = (result: unknown): void => {
  if (!Predicate.isPromiseLike(result)) return
  result.then(undefined, () => {})
  throw new TypeError("it returned a promise; code of a simulated device must be synchronous")
}

/** Prints any thrown value. */
const print = (thrown: unknown): string => {
  try {
    return String(thrown)
  } catch {
    return "a value that cannot be printed"
  }
}

export const noCancel: Cancel = () => {}
