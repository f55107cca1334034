/** A conversation as what a model is to continue. */
import type { Message } from '../data/preferences.js';
import type { Tokenizer } from './tokenizer.js';

/**
 * Its ids by the model's chat template, up to the header of the answer: those that training gives the same prompt. Throws
 * ERR_MODEL without a template, ERR_DATA for turns that the template refuses.
 */
export function encodePrompt(messages: readonly Message[], tokenizer: Tokenizer): Promise<number[]> {
  return tokenizer.encode(tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true }));
}
