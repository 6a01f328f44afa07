/**
 * The contract on the simulated runtime, traced and counted: the layers change nothing that a program can see.
 */
import { describe } from "@effect/vitest"
import * as CudaMetrics from "effect-cuda/CudaMetrics"
import * as TracedRuntime from "effect-cuda/TracedRuntime"
import * as Layer from "effect/Layer"
import { simulatedRig } from "../support/simulatedRig.ts"
import { contract } from "./contract.ts"

const layers = Layer.provideMerge(TracedRuntime.layer({ roots: true }), CudaMetrics.layer({ interval: 20 }))

// Some tests expect work of 20 milliseconds to be pending, which a busy machine that also measures may not keep up with.
describe("traced", { retry: 2 }, () => {
  contract({ ...simulatedRig, layer: Layer.provideMerge(layers, simulatedRig.layer) })
})
