/**
 * The contract on the simulated runtime, with two devices, in real time.
 */
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { simulatedKernels } from "../support/kernels.ts"
import { Busy } from "../support/Rig.ts"
import { contract } from "./contract.ts"

const busy = Layer.effect(
  Busy,
  Effect.map(SimulatedRuntime.SimulatedControl, (control) => ({
    enqueue: (stream, millis) => Effect.orDie(control.launch(stream, { duration: millis }))
  }))
)

/** Small, because device memory is memory of this process. */
const device = { memory: 2 ** 30 }

contract({
  name: "simulated",
  deviceCount: 2,
  layer: Layer.provideMerge(
    busy,
    SimulatedRuntime.layer({
      devices: [device, device],
      kernels: simulatedKernels,
      globals: { counter: Uint8Array.of(5, 0, 0, 0) }
    })
  )
})
