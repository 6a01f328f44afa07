/**
 * Runs programs on checked runtimes.
 */
import { assert } from "@effect/vitest"
import * as CheckedRuntime from "effect-cuda/CheckedRuntime"
import type { CudaError } from "effect-cuda/CudaError"
import type { CudaRuntime } from "effect-cuda/CudaRuntime"
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { simulatedKernels } from "../support/kernels.ts"

type Program = Effect.Effect<unknown, CudaError, CudaRuntime | CheckedRuntime.Checker | Scope.Scope>

const device = { memory: 2 ** 28 }

export const simulated = SimulatedRuntime.layer({
  devices: [device, device],
  kernels: simulatedKernels,
  globals: { counter: Uint8Array.of(5, 0, 0, 0) }
})

/** The reports of a program, with those made when the runtime ends. */
export const reportsOf = (
  program: Program,
  options: CheckedRuntime.CheckOptions = {},
  runtime: Layer.Layer<CudaRuntime, CudaError> = simulated
) =>
  Effect.suspend(() => {
    const reports: Array<CheckedRuntime.Report> = []
    const layer = CheckedRuntime.layer({
      mode: "collect",
      ...options,
      onReport: (report) => reports.push(report)
    })
    return Effect.as(
      Effect.scoped(program).pipe(Effect.provide(layer.pipe(Layer.provide(runtime)))),
      reports
    )
  })

/** A race as `expectReports` expects it. */
export const raceOf = (first: string, uses: string, second: string, alsoUses: string): string =>
  `${first} ${uses}, ${second} ${alsoUses}`

const printed = (report: CheckedRuntime.Report): string =>
  report._tag === "Race"
    ? raceOf(report.first.operation, report.first.kind, report.second.operation, report.second.kind)
    : report._tag === "MisusedEvent"
    ? report.problem
    : report._tag

/** Checks the reports of a program, each as the two operations, or as its kind. */
export const expectReports = (
  program: Program,
  expected: ReadonlyArray<string>,
  runtime?: Layer.Layer<CudaRuntime, CudaError>
) =>
  Effect.map(reportsOf(program, {}, runtime), (reports) => {
    assert.deepStrictEqual(reports.map(printed), expected, reports.map(({ message }) => message).join("\n"))
  })
