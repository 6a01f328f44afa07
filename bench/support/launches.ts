/**
 * Launches of empty kernels with no arguments, three, and 32, measured on every runtime.
 */
import * as Effect from "effect/Effect"
import * as CudaKernel from "../../src/CudaKernel.ts"
import * as CudaMemory from "../../src/CudaMemory.ts"
import * as CudaModule from "../../src/CudaModule.ts"
import * as CudaParameter from "../../src/CudaParameter.ts"
import * as CudaProgram from "../../src/CudaProgram.ts"
import * as CudaStream from "../../src/CudaStream.ts"
import * as SimulatedRuntime from "../../src/layers/SimulatedRuntime.ts"
import type { Operation } from "./compare.ts"
import { kernelsPath } from "./driver.ts"

const { f32, input, pointer, u32, u64 } = CudaParameter
const four = [pointer, u32, f32, u64] as const
const parameters = {
  none: [],
  three: [pointer, input, u32],
  many: [...four, ...four, ...four, ...four, ...four, ...four, ...four, ...four]
} as const

/** The same kernels for simulated devices. */
export const simulatedKernels = {
  none: SimulatedRuntime.kernel({ parameters: parameters.none, cost: 1, run: () => {} }),
  three: SimulatedRuntime.kernel({ parameters: parameters.three, cost: 1, run: () => {} }),
  many: SimulatedRuntime.kernel({ parameters: parameters.many, cost: 1, run: () => {} })
}

/** A launch, with the arguments of the raw call: one word per argument. */
export interface Launch extends Operation {
  readonly kernel: keyof typeof parameters
  readonly words: ReadonlyArray<number>
}

const config = { grid: 1, block: 1 }
/** Launches per batch: few enough not to fill the driver's queue. */
const count = 250

export const makeLaunches = Effect.gen(function*() {
  const module = yield* CudaModule.load(yield* CudaProgram.fromFile(kernelsPath))
  const none = yield* CudaKernel.get(module, "none", parameters.none)
  const three = yield* CudaKernel.get(module, "three", parameters.three)
  const many = yield* CudaKernel.get(module, "many", parameters.many)
  const stream = yield* CudaStream.make()
  const buffer = yield* CudaMemory.allocate(4096)
  const part = CudaMemory.slice(buffer, 2048)
  const { address } = buffer
  const launches: ReadonlyArray<Launch> = [
    {
      name: "no arguments",
      peer: "launchNone",
      kernel: "none",
      words: [],
      count,
      effect: () => CudaKernel.launch(none, config, [], stream)
    },
    {
      name: "3 arguments",
      peer: "launchThree",
      kernel: "three",
      words: [address, address + 2048, 512],
      count,
      effect: () => CudaKernel.launch(three, config, [buffer, part, 512], stream)
    },
    {
      name: "32 arguments",
      peer: "launchMany",
      kernel: "many",
      words: Array.from({ length: 32 }, (_, index) => index % 4 === 0 ? address : index),
      count,
      effect: () => CudaKernel.launch(many, config, manyArguments(buffer), stream)
    }
  ]
  return { buffer, part, stream, launches }
})

/** Written out in full, as a program would. */
const manyArguments = (at: CudaMemory.DeviceBuffer) =>
  [
    at,
    1,
    0.5,
    7,
    at,
    1,
    0.5,
    7,
    at,
    1,
    0.5,
    7,
    at,
    1,
    0.5,
    7,
    at,
    1,
    0.5,
    7,
    at,
    1,
    0.5,
    7,
    at,
    1,
    0.5,
    7,
    at,
    1,
    0.5,
    7
  ] as const
