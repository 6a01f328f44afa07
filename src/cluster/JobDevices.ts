/**
 * The GPUs that a runner lends to the ranks of jobs: each to one rank at a time.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"

/**
 * The devices of a runner, shared by all jobs that it serves.
 *
 * @category services
 * @since 0.1.0
 */
export class JobDevices extends Context.Service<JobDevices, {
  /** Indices of the devices that ranks may get. */
  readonly devices: ReadonlyArray<number>
  /** Takes the first free device until the scope closes. `None` if every device is taken. */
  readonly take: Effect.Effect<Option.Option<number>, never, Scope.Scope>
}>()("effect-cuda/cluster/JobDevices") {}

/**
 * Makes the service from the indices of the devices.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (devices: ReadonlyArray<number>): JobDevices["Service"] => {
  const all = [...new Set(devices)]
  const free = new Set(all)
  const take = Effect.sync(() => {
    const device = all.find((device) => free.has(device))
    if (device !== undefined) free.delete(device)
    return Option.fromUndefinedOr(device)
  })
  const giveBack = (device: Option.Option<number>) =>
    Effect.sync(() => {
      if (Option.isSome(device)) free.add(device.value)
    })
  return JobDevices.of({ devices: all, take: Effect.acquireRelease(take, giveBack) })
}

/**
 * Lends the devices with the given indices, or those that an effect finds.
 *
 * **Details**
 *
 * A rank holds its device until the scope of its program has closed. A runner whose devices are all taken declines further ranks, and the job looks
 * for another runner.
 *
 * **Gotchas**
 *
 * Runners do not know of each other's devices. Two runners on one machine need different indices, or different `CUDA_VISIBLE_DEVICES`.
 *
 * **Example** (All GPUs of the runtime)
 *
 * ```ts
 * import { CudaDevice, NativeRuntime } from "effect-cuda"
 * import { JobDevices } from "effect-cuda/cluster"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 *
 * export const first = JobDevices.layer([0])
 *
 * export const all = JobDevices.layer(Effect.map(CudaDevice.all, (devices) => devices.map(({ index }) => index))).pipe(
 *   Layer.provide(NativeRuntime.layer())
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = <E = never, R = never>(
  devices: ReadonlyArray<number> | Effect.Effect<ReadonlyArray<number>, E, R>
): Layer.Layer<JobDevices, E, R> =>
  Layer.effect(JobDevices, Effect.map(Effect.isEffect(devices) ? devices : Effect.succeed(devices), make))
