/**
 * The contract on the native runtime, if there is a GPU; then once more with every race a failure. In one file, because some tests need all
 * memory of the GPU.
 */
import { describe } from "@effect/vitest"
import * as CheckedRuntime from "effect-cuda/CheckedRuntime"
import * as Layer from "effect/Layer"
import { gpu, nativeRig } from "../support/gpu.ts"
import { contract } from "./contract.ts"

const checkedRig = {
  ...nativeRig,
  layer: Layer.provideMerge(CheckedRuntime.layer({ mode: "fail" }), nativeRig.layer)
}

describe.skipIf(gpu === undefined)("on a GPU", () => contract(nativeRig))
describe.skipIf(gpu === undefined)("on a GPU, checked", () => contract(checkedRig))
