/**
 * The doctor: examines the system, the driver and its devices, and the libraries.
 */
import * as Effect from "effect/Effect"
import { minimumDriverVersion } from "../../cuda/flags.ts"
import { prepareStack } from "../../cuda/koffi.ts"
import { examineDevices } from "./devices.ts"
import { examineLibraries } from "./libraries.ts"
import { reportOf } from "./report.ts"
import type { Report } from "./report.ts"
import { examineSystem } from "./system.ts"

/** Examines this machine. Never fails: what is wrong is in the report. */
export const examine: Effect.Effect<Report> = Effect.gen(function*() {
  yield* Effect.promise(prepareStack)
  const system = yield* examineSystem
  const { cudaVersion = minimumDriverVersion, findings } = yield* examineDevices()
  const libraries = yield* examineLibraries(Math.floor(cudaVersion / 1000))
  return reportOf([...system, ...findings, ...libraries])
})
