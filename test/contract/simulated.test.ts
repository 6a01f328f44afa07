/**
 * The contract on the simulated runtime.
 */
import { simulatedRig } from "../support/simulatedRig.ts"
import { contract } from "./contract.ts"

contract(simulatedRig)
