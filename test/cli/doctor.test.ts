/**
 * The doctor on simulated devices, without a driver, and with devices that compute wrongly or fail; and its command.
 */
import { assert, describe, it } from "@effect/vitest"
import { CudaParameter, CudaRuntime, FaultInjection, SimulatedRuntime } from "effect-cuda"
import * as Command from "effect/cli/Command"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Path from "effect/Path"
import * as ChildProcessSpawner from "effect/process/ChildProcessSpawner"
import * as Stdio from "effect/Stdio"
import * as Terminal from "effect/Terminal"
import * as TestConsole from "effect/testing/TestConsole"
import { command } from "../../src/cli/commands.ts"
import { examineDevices } from "../../src/cli/doctor/devices.ts"
import { finding, reportOf, toText } from "../../src/cli/doctor/report.ts"
import { kernelName } from "../../src/cli/doctor/selfTest.ts"
import { CudaError } from "../../src/CudaError.ts"

const doubling = (factor: number) =>
  SimulatedRuntime.kernel({
    parameters: [CudaParameter.pointer],
    run: ({ args: [pointer] }) => {
      const words = pointer.view(Uint32Array)
      for (let at = 0; at < words.length; at++) words[at] = Math.imul(words[at]!, factor)
    }
  })

const machine = (factor: number, devices = 1) =>
  SimulatedRuntime.layer({
    devices: Array.from({ length: devices }, () => ({})),
    kernels: { [kernelName]: doubling(factor) }
  })

const examined = <E>(layer: Layer.Layer<CudaRuntime.CudaRuntime, E>) =>
  examineDevices(Effect.map(Effect.orDie(Layer.build(layer)), Context.get(CudaRuntime.CudaRuntime)))

describe("doctor", () => {
  it.live("describes and tests each device", () =>
    Effect.gen(function*() {
      const { findings } = yield* examined(machine(2, 2))
      assert.deepStrictEqual(findings.filter(({ verdict }) => verdict === "problem"), [])
      const subjects = findings.map(({ section, subject }) => `${section}: ${subject}`)
      assert.includeMembers(subjects, [
        "driver: CUDA",
        "devices: device 1",
        "peer access: device 0 → 1",
        "test of device 0: copy to device",
        "test of device 1: kernel",
        "test of device 1: record and wait"
      ])
    }))

  it.live("finds a device that computes wrongly", () =>
    Effect.gen(function*() {
      const { findings } = yield* examined(machine(3))
      const wrong = findings.filter(({ verdict }) => verdict === "problem")
      assert.deepStrictEqual(wrong.map(({ found, subject }) => [subject, found]), [["kernel", "the result is wrong"]])
      assert.isFalse(reportOf(findings).ok)
    }))

  it.live("reports a call that fails, and leaves nothing behind", () =>
    Effect.gen(function*() {
      const runtime = Context.get(yield* Layer.build(machine(2)), CudaRuntime.CudaRuntime)
      const { injection, runtime: failing } = yield* FaultInjection.make(runtime)
      yield* injection.failNext("CudaMemory.copy", "OutOfMemory")
      const { findings } = yield* examineDevices(Effect.succeed(failing))
      const [problem] = findings.filter(({ verdict }) => verdict === "problem")
      assert.include(problem?.found, "CUDA_ERROR_OUT_OF_MEMORY")
      const live = yield* runtime.liveResources
      assert.deepStrictEqual([live.streams, live.events], [0, 0])
    }).pipe(Effect.scoped))

  it.effect("lists the places of a driver that was not found", () =>
    Effect.gen(function*() {
      const searched = [{ path: "/broken/libcuda.so.1", problem: "wrong ELF class" }]
      const reason = { _tag: "LibraryNotFound", isNamed: true, searched } as const
      const { cudaVersion, findings } = yield* examineDevices(Effect.fail(new CudaError({ operation: "make", reason })))
      assert.isUndefined(cudaVersion)
      const text = toText(reportOf(findings))
      assert.include(text, "/broken/libcuda.so.1: wrong ELF class")
      assert.include(text, "→ Correct the path in EFFECT_CUDA_LIBRARY")
      assert.include(text, "Programs cannot use a GPU (1 problem).")
    }))

  it("counts warnings, which are no problems", () => {
    const report = reportOf([finding("a", "b", "warning", "c"), finding("a", "d", "note", "e")])
    assert.strictEqual(toText(report), "a\n  ! b  c\n  – d  e\n\nPrograms can use the GPU (1 warning).")
  })
})

const silent = Effect.die(new Error("not asked"))

const platform = Layer.mergeAll(
  FileSystem.layerNoop({}),
  Path.layer,
  Stdio.layerTest({}),
  Layer.succeed(
    Terminal.Terminal,
    Terminal.make({
      columns: Effect.succeed(80),
      rows: Effect.succeed(24),
      size: silent,
      readInput: silent,
      readLine: silent,
      display: () => Effect.void
    })
  ),
  Layer.succeed(ChildProcessSpawner.ChildProcessSpawner, ChildProcessSpawner.make(() => silent))
)

describe("the command", () => {
  const run = (...args: ReadonlyArray<string>) =>
    Effect.exit(Command.runWith(command, { version: "1.2.3" })(args)).pipe(Effect.provide(platform))

  it.live("prints a report as JSON, and fails where programs cannot use a GPU", () =>
    Effect.gen(function*() {
      const exit = yield* run("doctor", "--json")
      const report = JSON.parse((yield* TestConsole.logLines).join("\n"))
      assert.strictEqual(Exit.isSuccess(exit), report.ok)
      assert.includeMembers(report.findings.map(({ subject }: { subject: string }) => subject), ["koffi", "CUDA"])
    }).pipe(Effect.provide(TestConsole.layer)), 60_000)

  it.effect("refuses flags it does not know", () =>
    Effect.gen(function*() {
      assert.isTrue(Exit.isFailure(yield* run("doctor", "--fast")))
      assert.include((yield* TestConsole.errorLines).join("\n"), "--fast")
    }).pipe(Effect.provide(TestConsole.layer)))
})
