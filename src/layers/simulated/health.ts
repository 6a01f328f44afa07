/**
 * Simulated health: the numbers of an idle device until a test sets others, with the memory of the runtime.
 */
import * as Effect from "effect/Effect"
import type { CudaError } from "../../CudaError.ts"
import type { CudaRuntimeService } from "../CudaRuntime.ts"
import type {
  CudaHealthService,
  DeviceProcess,
  HealthSample,
  SimulatedHealthService,
  SimulatedSample,
  XidEvent
} from "../Health.ts"
import { refuseArgument } from "../shared/failures.ts"
import { refuseDevice } from "../shared/health.ts"

/** An idle device. */
const idle = {
  utilization: { gpu: 0, memory: 0 },
  temperature: 35,
  power: 75,
  powerLimit: 700,
  clocks: { sm: 345, memory: 2619 },
  throttleReasons: ["gpuIdle"],
  ecc: { corrected: 0, uncorrected: 0 }
} satisfies SimulatedSample

/** What a test set for a device. */
interface State {
  fields: SimulatedSample
  processes: ReadonlyArray<DeviceProcess>
}

/** The reports that a watch has not delivered yet. */
interface Watch {
  readonly deviceIndex: number | undefined
  pending: Array<XidEvent>
}

export const makeSimulated = (
  runtime: CudaRuntimeService,
  samples: ReadonlyArray<SimulatedSample>
): Effect.Effect<{ readonly health: CudaHealthService; readonly control: SimulatedHealthService }, CudaError> =>
  Effect.suspend(() => {
    const { devices } = runtime
    if (samples.length > devices.length) {
      const expected = `at most ${devices.length}, one for each device`
      return refuseArgument("CudaHealth.layerSimulated", "samples", samples.length, expected)
    }
    const states = devices.map((_, index): State => ({ fields: samples[index] ?? {}, processes: [] }))
    const watches = new Set<Watch>()
    const on = <A>(operation: string, index: number, use: (state: State) => Effect.Effect<A, CudaError>) =>
      Effect.suspend(() => refuseDevice(operation, devices, index) ?? use(states[index]!))

    const health: CudaHealthService = {
      devices,
      sample: (index) => on("CudaHealth.sample", index, ({ fields }) => sampleOf(runtime, index, fields)),
      processes: (index) => on("CudaHealth.processes", index, ({ processes }) => Effect.succeed(processes)),
      energy: (index) => on("CudaHealth.energy", index, () => Effect.succeed(0)),
      watchXids: (deviceIndex) => {
        const refused = deviceIndex === undefined ? undefined : refuseDevice("CudaHealth.xids", devices, deviceIndex)
        return refused ?? Effect.map(
          Effect.acquireRelease(
            Effect.sync(() => {
              const watch: Watch = { deviceIndex, pending: [] }
              watches.add(watch)
              return watch
            }),
            (watch) => Effect.sync(() => watches.delete(watch))
          ),
          (watch) => ({ poll: Effect.sync(() => watch.pending.splice(0)) })
        )
      }
    }

    const control: SimulatedHealthService = {
      set: (index, fields) =>
        on("SimulatedHealth.set", index, (state) => {
          state.fields = { ...state.fields, ...fields }
          return Effect.void
        }),
      setProcesses: (index, processes) =>
        on("SimulatedHealth.setProcesses", index, (state) => {
          state.processes = [...processes]
          return Effect.void
        }),
      xid: (index, xid) =>
        on("SimulatedHealth.xid", index, () => {
          for (const watch of watches) {
            if ((watch.deviceIndex ?? index) === index) watch.pending.push({ deviceIndex: index, xid })
          }
          return Effect.void
        })
    }
    return Effect.succeed({ health, control })
  })

const sampleOf = (
  runtime: CudaRuntimeService,
  deviceIndex: number,
  fields: SimulatedSample
): Effect.Effect<HealthSample> => {
  const withMemory = (memory: HealthSample["memory"]): HealthSample => ({ deviceIndex, memory, ...idle, ...fields })
  if ("memory" in fields) return Effect.succeed(withMemory(undefined))
  return Effect.match(runtime.deviceMemoryInfo(deviceIndex), {
    // NVML answers after a fault; the runtime does not.
    onFailure: () => withMemory(undefined),
    onSuccess: ({ free, total }) => withMemory({ used: total - free, total, free, reserved: 0 })
  })
}
