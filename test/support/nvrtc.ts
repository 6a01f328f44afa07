/**
 * Whether programs can be compiled and run here, which needs a GPU and NVRTC.
 */
import { load } from "../../src/cuda/nvrtcLibrary.ts"
import { gpu } from "./gpu.ts"

const found = gpu === undefined ? undefined : await load(process.env["EFFECT_CUDA_NVRTC"], 13)

/** Why not, or undefined if they can. */
export const missing = gpu === undefined ? "no GPU" : found?._tag === "Loaded" ? undefined : "no NVRTC"
