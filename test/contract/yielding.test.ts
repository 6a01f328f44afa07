/**
 * The contract of combinators and host functions on the simulated runtime, with fibers that yield every few operations.
 */
import { describe } from "@effect/vitest"
import { simulatedRig } from "../support/simulatedRig.ts"
import { yieldingRig } from "../support/yields.ts"
import { branchContract, dependencyContract, forkContract } from "./branches.ts"
import { hostFunctionContract } from "./hostFunctions.ts"
import { pipelineContract } from "./pipeline.ts"
import { taskGraphContract } from "./taskGraph.ts"

for (const operations of [3, 4, 5, 7]) {
  const rig = yieldingRig(simulatedRig, operations)
  describe(rig.name, () => {
    branchContract(rig)
    forkContract(rig)
    dependencyContract(rig)
    taskGraphContract(rig)
    pipelineContract(rig)
    hostFunctionContract(rig)
  })
}
