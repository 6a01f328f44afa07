/**
 * The contract of every runtime: each suite below runs on the simulated runtime, and on the native one where there is a GPU.
 */
import { describe } from "@effect/vitest"
import type { Rig } from "../support/Rig.ts"
import { deviceContract } from "./devices.ts"
import { eventContract } from "./events.ts"
import { lifetimeContract } from "./lifetimes.ts"
import { memoryContract } from "./memory.ts"
import { poolContract, streamContract } from "./streams.ts"

export const contract = (rig: Rig): void => {
  describe(rig.name, () => {
    deviceContract(rig)
    streamContract(rig)
    poolContract(rig)
    eventContract(rig)
    memoryContract(rig)
    lifetimeContract(rig)
  })
}
