/**
 * Compiling on a simulated runtime: simulated devices run no machine code, so a program becomes an image without content.
 * Its kernels are functions, found by the names that the source gives them.
 */
import * as Effect from "effect/Effect"
import type { CompiledProgram } from "../CudaRuntime.ts"
import { architectureName } from "../shared/programs.ts"
import type { CompileTask, ProgramBackend } from "../shared/programs.ts"

export class SimulatedPrograms implements ProgramBackend {
  compile({ goal, nameExpressions }: CompileTask): Effect.Effect<CompiledProgram> {
    return Effect.sync(() => ({
      kind: "simulated",
      architecture: architectureName(goal),
      image: new Uint8Array(0),
      loweredNames: new Map(nameExpressions.map((expression) => [expression, expression])),
      log: "",
      fromCache: false
    }))
  }
}
