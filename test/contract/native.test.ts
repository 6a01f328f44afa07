/**
 * The contract on the native runtime, if there is a GPU.
 */
import { describe } from "@effect/vitest"
import { gpu, nativeRig } from "../support/gpu.ts"
import { contract } from "./contract.ts"

describe.skipIf(gpu === undefined)("on a GPU", () => contract(nativeRig))
