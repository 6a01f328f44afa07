/**
 * The implementation of `SimulatedControl`, with which tests control simulated devices.
 */
import * as Effect from "effect/Effect"
import { statuses, success } from "../../cuda/status.ts"
import type { StatusTag } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { DeviceMemoryRef, StreamRef } from "../CudaRuntime.ts"
import { fromStatus, refuseArgument, refuseResource } from "../shared/failures.ts"
import type { FaultOrigins } from "../shared/failures.ts"
import { injectionService } from "../shared/injection.ts"
import type { Injection } from "../shared/injection.ts"
import { ownMemory, ownStream, unusable } from "../shared/resources.ts"
import type { SimulatedControlService, Work } from "../SimulatedRuntime.ts"
import type { SimulatedBackend } from "./Backend.ts"
import { nanoseconds } from "./durations.ts"

export const makeControl = (backend: SimulatedBackend, injection: Injection): SimulatedControlService => {
  const { driver } = backend
  const origins: FaultOrigins = { first: undefined }
  return {
    ...injectionService(injection, "SimulatedControl"),
    launch: (target, work) => launch(backend, origins, refOf(target), work),
    lose: (device, status) => lose(backend, device, status),
    bytes: (target) => bytes(backend, refOf(target)),
    timeline: Effect.sync(() => {
      driver.now()
      return driver.model.timeline?.slice() ?? []
    }),
    now: Effect.sync(() => driver.now()),
    pendingOperations: Effect.sync(() => {
      driver.now()
      return driver.model.world.pending
    })
  }
}

/** The reference of a handle. Anything else is what it is, and the operation refuses it by name. */
const refOf = <Ref extends object>(target: Ref | { readonly ref: Ref }): Ref =>
  typeof target === "object" && target !== null && "ref" in target ? target.ref : target

const launch = (
  backend: SimulatedBackend,
  origins: FaultOrigins,
  ref: StreamRef,
  work: Work
): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const operation = "SimulatedControl.launch"
    const stream = ownStream(ref)
    if (unusable(backend, stream)) return refuseResource(operation, backend, stream)
    const duration = nanoseconds(work.duration)
    if (duration === undefined) return refuseArgument(operation, "duration", work.duration, "a non-negative duration")
    if (work.fault !== undefined && !isSticky(work.fault)) {
      return refuseArgument(
        operation,
        "fault",
        work.fault,
        "the tag of a sticky status, for example IllegalAddress"
      )
    }
    const status = backend.launch(stream, {
      duration,
      fault: work.fault === undefined ? success : statuses[work.fault].code,
      ...(work.run === undefined ? {} : { act: work.run })
    })
    if (status === success) return Effect.void
    const context = { operation, deviceIndex: stream.deviceIndex, subject: String(stream) }
    return Effect.fail(fromStatus(backend, origins, status, context))
  })

const lose = (backend: SimulatedBackend, deviceIndex: number, status: StatusTag): Effect.Effect<void, CudaError> =>
  Effect.suspend(() => {
    const operation = "SimulatedControl.lose"
    const { all } = backend.devices
    if (!Number.isInteger(deviceIndex) || all[deviceIndex] === undefined) {
      return refuseArgument(operation, "device", deviceIndex, `a device index from 0 to ${all.length - 1}`)
    }
    if (!isSticky(status)) return refuseArgument(operation, "status", status, "the tag of a sticky status")
    backend.endContext(deviceIndex, statuses[status].code)
    return Effect.void
  })

const bytes = (
  backend: SimulatedBackend,
  ref: DeviceMemoryRef
): Effect.Effect<Uint8Array<ArrayBuffer>, CudaError> =>
  Effect.suspend(() => {
    const operation = "SimulatedControl.bytes"
    const memory = ownMemory(ref)
    if (unusable(backend, memory)) return refuseResource(operation, backend, memory)
    const content = backend.bytesOf(memory)
    if (content !== undefined) return Effect.succeed(content)
    const context = { operation, deviceIndex: ref.deviceIndex, subject: String(memory) }
    return Effect.fail(fromStatus(backend, { first: undefined }, statuses.OutOfMemory.code, context))
  })

const isSticky = (status: StatusTag): boolean => Object.hasOwn(statuses, status) && statuses[status].isSticky
