/**
 * The worlds, one per clock, so that runtimes with the same clock can wait for each other's events.
 */
import type * as Clock from "effect/Clock"
import { LoopTurns } from "./Turns.ts"
import { World } from "./World.ts"

/** A world, with its present time according to its clock. */
export interface ClockedWorld {
  readonly world: World
  /** Nanoseconds since the world began. */
  readonly now: () => number
}

const worlds = new WeakMap<Clock.Clock, ClockedWorld>()

export const worldOf = (clock: Clock.Clock): ClockedWorld => {
  const known = worlds.get(clock)
  if (known !== undefined) return known
  const origin = clock.monotonicTimeNanosUnsafe()
  const now = () => Number(clock.monotonicTimeNanosUnsafe() - origin)
  const made = { world: new World(now, new LoopTurns(now)), now }
  worlds.set(clock, made)
  return made
}
