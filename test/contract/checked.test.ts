/**
 * The contract on the simulated runtime, checked: operations that race fail. Those that race on purpose are marked with `unchecked`.
 */
import * as CheckedRuntime from "effect-cuda/CheckedRuntime"
import * as Layer from "effect/Layer"
import { simulatedRig } from "../support/simulatedRig.ts"
import { contract } from "./contract.ts"

contract({
  ...simulatedRig,
  layer: Layer.provideMerge(CheckedRuntime.layer({ mode: "fail", hostWrites: true }), simulatedRig.layer)
})
