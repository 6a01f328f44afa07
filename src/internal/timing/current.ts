/**
 * The timeline that regions are recorded into. Apart from the recorder, so that modules which only ask for it do without its code.
 */
import * as Context from "effect/Context"
import type { Recorder } from "./recorder.ts"

/** The recorder of the innermost timeline. */
export const CurrentRecorder = Context.Reference<Recorder | undefined>("effect-cuda/CurrentRecorder", {
  defaultValue: () => undefined
})
